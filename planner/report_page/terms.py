"""The words of a report that not everyone knows, what each means, and texts in which they explain themselves."""

import html
import re

from planner.console import printable

TERMS = {
    "tok/s": "Tokens per second: how fast text is written. A token is a word or a piece of one; people read about 5 "
    "to 10 tokens a second.",
    "speculate": "Let a quick draft guess ahead, so that one check by the large model can add several tokens at once.",
    "weights": "The numbers that a model is made of, learned beforehand; they take most of its memory.",
    "layer": "One of the steps that a model is made of, which follow each other; each has weights of its own.",
    "pass": "All layers of a model gone through once. What is streamed travels once in every pass.",
    "prompt": "The text that the model is given, and goes on from.",
    "P10": "One prediction in ten is expected to come out below this number.",
    "P50": "The median: as many predictions are expected to come out below this number as above it.",
    "P90": "Nine predictions in ten are expected to come out below this number.",
    "P10-P90": "Where eight of ten predictions are expected to come out: one in ten lies below, one in ten above.",
    "draft": "A quick guess of the next tokens, by a small model or by copying from earlier text. The large model "
    "checks all of them at once, so that right guesses come almost for free and wrong ones change nothing in the text.",
    "draft length": "How many tokens are guessed before the large model checks them.",
    "target": "The large model that you want to run; the text is always its own.",
    "round": "One guess and one check: the draft proposes tokens, the large model goes once through all its layers and "
    "accepts those that are right, then adds one of its own.",
    "tokens per round": "How many tokens one round adds to the text, the large model's own among them.",
    "acceptance": "How often a guessed token is what the large model would have written.",
    "resident": "Weights that stay on the device, and need no copy.",
    "slot": "Memory on the device through which one layer after another passes: while one computes, the next arrives.",
    "link": "The way that weights take to the device: from host memory to a graphics card, or from disk into memory.",
    "link bandwidth": "How many gigabytes of weights reach the device in a second.",
    "device memory": "Memory of the graphics card, or of the computer where the processor computes by itself.",
    "device": "What computes: a graphics card, or the processor.",
    "host memory": "The computer's own memory, beside a graphics card.",
    "budget": "How much device memory may be taken.",
    "host": "The computer around the device: its processor, which prepares every round, and its memory.",
    "disk": "Where weights lie that the computer's memory does not hold; from there they come more slowly.",
    "compute": "The time in which the device calculates.",
    "GiB": "A gibibyte, in which memory is counted: 1024 MiB, or some 1.07 billion bytes.",
    "MiB": "A mebibyte, in which memory is counted: 1,048,576 bytes.",
    "GB/s": "Gigabytes a second: so many billion bytes.",
    "first token": "How long it takes from the question until the first piece of text appears.",
    "context": "All tokens that the model looks at: the prompt and the text so far. Each takes memory.",
    "KV cache": "What the model keeps of each token that it has read, so as not to read it again.",
    "activations": "Memory for what is computed while the tokens pass through a layer.",
    "overhead": "Memory that the software takes by itself.",
    "margin": "Memory left free on purpose, for what nobody foresaw.",
    "waiting for weights": "The device has nothing to compute with, since the weights are still on their way.",
    "link busy": "The time in which weights travel; beyond it the link stands still.",
    "link idle": "The time in which no weights travel.",
    "chain": "A draft that guesses one token after another.",
    "n-grams": "A draft that looks for the last words in earlier text and copies what followed them; needs no model.",
    "tree": "A draft that guesses several ways to go on at once.",
    "hybrid": "A draft that guesses several ways to go on, and copies from earlier text as well.",
    "times no draft": "How many times as fast as without any draft; 1.00 is no gain.",
    "nodes": "The tokens that are guessed in a round, all ways to go on together.",
    "attention": "The part of a layer that looks back at earlier tokens.",
    "MLP": "The part of a layer that works on each token by itself; it has most of the layer's weights.",
    "depth": "How many tokens follow each other on the longest way that a tree guesses.",
    "prefetch": "Copying weights before their turn, while others compute.",
    "roofline": "An estimate by the two limits of a device: how fast it calculates, and how fast its memory is.",
    "quartiles": "A quarter of what was measured lies below the first of them, and a quarter above the last.",
    "hazard": "The chance that a guessed token is right where all those guessed before it are.",
    "streamed": "Copied to the device anew each time the model goes through its layers, as it does not all fit.",
    "prefill chunk": "How many tokens of the prompt are read at a time.",
    "binds": "Decides the speed: whatever else were faster would change little.",
    "crossover": "The draft length at which guessing starts or stops being worth it.",
}
_FORMS = {
    "drafts": "draft",
    "drafted": "draft",
    "drafting": "draft",
    "draft lengths": "draft length",
    "rounds": "round",
    "slots": "slot",
    "speculation": "speculate",
    "layers": "layer",
    "passes": "pass",
    "node": "nodes",
    "residents": "resident",
    "resident weights": "resident",
    "n-gram": "n-grams",
    "chains": "chain",
    "trees": "tree",
    "hybrids": "hybrid",
    "accepted": "acceptance",
    "bandwidth": "link bandwidth",
    "link rate": "link bandwidth",
    "streams": "streamed",
    "ttft": "first token",
}
_BY_FORM = {**{term.lower(): term for term in TERMS}, **_FORMS}
_PATTERN = re.compile(
    r"(?<![\w/-])(?:" + "|".join(re.escape(form) for form in sorted(_BY_FORM, key=len, reverse=True)) + r")(?![\w/-])",
    re.IGNORECASE,
)


def escaped(text: str) -> str:
    """Text as HTML that shows it and does nothing else, whatever it holds."""
    return html.escape(printable(text))


class Explainer:
    """Marks the words that not everyone knows where they come first, and remembers which ones came."""

    def __init__(self) -> None:
        self.used: set[str] = set()
        self._section: set[str] = set()

    def begin_section(self) -> None:
        """From here on every word is marked once more."""
        self._section = set()

    def explained(self, text: str) -> str:
        """The text as HTML; a word can be pointed at, tapped, or reached by the keyboard."""
        pieces, end = [], 0
        for match in _PATTERN.finditer(text):
            term = _BY_FORM[match[0].lower()]
            if term in self._section:
                continue
            self._section.add(term)
            self.used.add(term)
            pieces += [escaped(text[end : match.start()]), _marked(match[0], TERMS[term])]
            end = match.end()
        return "".join([*pieces, escaped(text[end:])])

    def glossary(self) -> str:
        """All words that were marked, with what they mean, as the items of a list."""
        return "".join(
            f"<dt>{escaped(term)}</dt><dd>{escaped(TERMS[term])}</dd>" for term in TERMS if term in self.used
        )


def _marked(word: str, meaning: str) -> str:
    tip = f'<span class="tip" role="tooltip">{escaped(meaning)}</span>'
    return f'<dfn class="term" tabindex="0">{escaped(word)}{tip}</dfn>'
