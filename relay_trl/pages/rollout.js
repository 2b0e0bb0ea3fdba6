"use strict";
// How pages draw who wrote what. Here it is set as text, never as HTML; `typeset.js` may set it after that.

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

/** One piece of an answer: the student's words, the teacher's, or a command with what became of it. */
function drawSegment(piece) {
  if (piece.author === "teacher") {
    const mark = element("mark", "teacher", piece.text);
    mark.title = `teacher, ${piece.tokens ?? 0} tokens`;
    return mark;
  }
  if (piece.author !== "call") return document.createTextNode(piece.text);
  const numbers = [piece.requested, piece.granted, piece.delivered];
  const chip = element("span", `chip ${piece.outcome}`);
  chip.append(element("b", "", "call"), ` ${numbers.join(" \u203a ")}`);
  if (piece.outcome !== "answered") chip.append(` ${piece.outcome}`);
  chip.title = `${piece.text}: asked ${numbers[0]}, granted ${numbers[1]}, delivered ${numbers[2]} (${piece.outcome})`;
  return chip;
}

/** A button that goes through the system's colours, light and dark, and remembers the choice. */
function followTheme(button) {
  const themes = ["", "light", "dark"];
  let current = "";
  try { current = localStorage.getItem("relay-theme") ?? ""; } catch { /* no storage for pages from disk */ }
  const show = () => {
    if (current) document.documentElement.dataset.theme = current;
    else delete document.documentElement.dataset.theme;
    button.textContent = { "": "Auto", light: "Light", dark: "Dark" }[current];
    button.setAttribute("aria-label", `Colours: ${button.textContent}`);
  };
  button.addEventListener("click", () => {
    current = themes[(themes.indexOf(current) + 1) % themes.length];
    try { localStorage.setItem("relay-theme", current); } catch { /* likewise */ }
    show();
  });
  show();
}
