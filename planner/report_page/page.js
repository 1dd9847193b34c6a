"use strict";
// Picks among what was computed beforehand, and draws it. No number is computed here.
(() => {
  const one = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  const unpacked = async (id) => {
    const bytes = Uint8Array.from(atob(one("#" + id).textContent.trim()), (char) => char.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  };

  const explain = () => {
    const close = () => all(".term.open").forEach((term) => term.classList.remove("open"));
    const place = (event) => {
      const term = event.target.closest?.(".term");
      if (!term || innerWidth <= 640) return;
      const tip = one(".tip", term);
      const box = term.getBoundingClientRect();
      tip.style.cssText = "display:block;visibility:hidden;right:auto;bottom:auto;left:0;top:0";
      const { width, height } = tip.getBoundingClientRect();
      const top = box.bottom + 6 + height < innerHeight ? box.bottom + 6 : Math.max(6, box.top - 6 - height);
      const left = Math.max(8, Math.min(box.left, innerWidth - width - 16));
      tip.style.cssText = `right:auto;bottom:auto;left:${left}px;top:${top}px`;
    };
    document.addEventListener("pointerover", place);
    document.addEventListener("focusin", place);
    document.addEventListener("click", (event) => {
      const term = event.target.closest(".term");
      const wasOpen = term?.classList.contains("open");
      close();
      if (term && !wasOpen) term.classList.add("open");
    });
    document.addEventListener("keydown", (event) => event.key === "Escape" && (close(), document.activeElement.blur()));
  };

  const start = async () => {
    const load = document.createElement("script");
    load.textContent = await unpacked("plotly");
    document.head.append(load);
    const page = JSON.parse(await unpacked("data"));
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const narrow = matchMedia("(max-width: 40rem)");
    const inputs = all("input[data-axis]");
    const lengthInput = one("input[data-lengths]");

    const fitPhone = (key, layout) => {
      layout.dragmode = false; // a finger scrolls the page
      layout.legend = { ...layout.legend, font: { size: 11 }, maxheight: 0.8 };
      if (layout.showlegend !== false) layout.height += 110; // which the legend takes in more rows
      if (key === "prices") layout.margin.r = 72; // for the numbers beside the bars
      const fitNote = (note) =>
        key === "map"
          ? { ...note, textangle: -90, font: { ...note.font, size: 11 } }
          : { ...note, text: note.text.replace("; ", ";<br>"), align: "left", font: { ...note.font, size: 11 } };
      layout.annotations = layout.annotations?.map(fitNote);
    };

    const draw = (key, picture) => {
      const holder = one(`figure[data-figure="${key}"]`);
      if (!holder) return;
      const plot = one(".plot", holder);
      holder.classList.toggle("unseen", !picture);
      if (!picture) return;
      one("h3", holder).innerHTML = picture.title;
      one(".sub", holder).innerHTML = picture.subtitle;
      const layout = structuredClone(picture.layout);
      layout.template = page.templates[dark.matches ? "dark" : "light"];
      if (narrow.matches) fitPhone(key, layout);
      if (key === "lengths" && lengthInput) {
        const at = page.lengths[Number(lengthInput.value)];
        layout.shapes = [...(layout.shapes ?? []), { type: "line", x0: at, x1: at, y0: 0, y1: 1, yref: "paper",
          line: { width: 2, dash: "dot" } }];
      }
      Plotly.react(plot, structuredClone(picture.data), layout, { responsive: true, displayModeBar: false });
    };

    const stand = () => {
      if (!inputs.length) return null;
      const place = inputs.reduce((sum, input) => sum * (Number(input.max) + 1) + Number(input.value), 0);
      return page.stands[place];
    };

    const showLength = (now) => {
      if (!lengthInput) return;
      const length = page.lengths[Number(lengthInput.value)];
      one("#length-output").textContent = length;
      one("#length-said").textContent = now.lengths[length] ?? `a chain of ${length} is not possible here`;
    };

    const show = () => {
      const now = stand();
      if (now) {
        inputs.forEach((input) => {
          const text = JSON.parse(input.dataset.texts)[Number(input.value)];
          one(`output[for="${input.id}"]`).textContent = text;
          input.setAttribute("aria-valuetext", text);
        });
        const answer = one(".answer");
        answer.toggleAttribute("data-empty", !now.facts);
        one(".headline", answer).innerHTML = now.headline;
        one(".facts", answer).innerHTML = now.facts;
        showLength(now);
        all("[data-table]").forEach((table) => {
          const body = now.tables[table.dataset.table];
          if (body !== undefined) table.innerHTML = body;
        });
        page.live.forEach((key) => draw(key, now.figures[key]));
      }
      Object.entries(page.figures).forEach(([key, picture]) => (now && page.live.includes(key)) || draw(key, picture));
    };

    inputs.forEach((input) => input.addEventListener("input", show));
    lengthInput?.addEventListener("input", () => {
      showLength(stand());
      draw("lengths", stand().figures.lengths);
    });
    one(".reset")?.addEventListener("click", () => {
      [...inputs, lengthInput].forEach((input) => input && (input.value = input.dataset.start));
      show();
    });
    dark.addEventListener("change", show);
    narrow.addEventListener("change", show);
    show();
    document.documentElement.dataset.ready = "yes";
  };

  explain();
  start().catch((error) => {
    const note = one("#no-pictures");
    note.hidden = false;
    note.textContent = "The pictures cannot be drawn in this browser, which is too old; all numbers are in the tables.";
    console.error(error);
  });
})();
