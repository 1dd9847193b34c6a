// Figures take the width of their places, and the page says whether it is dark. Plotly's widgets measure themselves
// before they stand on the page, and once more only when the window says that it was resized.
function isDark() {
  const { jpThemeLight, vscodeThemeKind } = document.body.dataset;
  if (jpThemeLight !== undefined) return jpThemeLight === "false";
  if (vscodeThemeKind !== undefined) return vscodeThemeKind.includes("dark");
  return false;
}

function fit() {
  if (window.draftstreamIsFitting) return;
  window.draftstreamIsFitting = true;
  setTimeout(() => {
    window.draftstreamIsFitting = false;
    window.dispatchEvent(new Event("resize"));
  }, 30);
}

function render({ model, el }) {
  const look = () => {
    model.set("is_dark", isDark());
    model.save_changes();
  };
  const width = new ResizeObserver(fit);
  const watch = (drawn) => width.observe(drawn.detail.element);
  const theme = new MutationObserver(look);
  width.observe(el);
  theme.observe(document.body, { attributes: true });
  document.addEventListener("plotlywidget-after-render", watch);
  look();
  return () => {
    width.disconnect();
    theme.disconnect();
    document.removeEventListener("plotlywidget-after-render", watch);
  };
}

export default { render };
