// Markdown and mathematics in what models and users write, with its author still to be seen. Everything is escaped first: HTML,
// links and pictures of a text stay text, and only known elements come into the page.

const OPEN = "\ue000"; // where the teacher begins, inside the source
const CLOSE = "\ue001";
const CHIP = "\ue002"; // a command
const SIGNS = /[\ue000-\ue002]/g;

const ELEMENTS = new Set(`p br hr h1 h2 h3 h4 h5 h6 em strong s code pre ul ol li blockquote table thead tbody tr th td
  span math semantics mrow mi mn mo mtext ms mspace mfrac msqrt mroot mstyle merror mpadded mphantom menclose msub msup
  msubsup munder mover munderover mmultiscripts mtable mtr mtd mlabeledtr`.split(/\s+/));
const ATTRIBUTES = new Set(`start display displaystyle scriptlevel mathvariant mathcolor mathbackground stretchy fence separator
  accent accentunder lspace rspace minsize maxsize symmetric movablelimits largeop columnalign rowspacing columnspacing columnlines
  rowlines linethickness width height depth voffset notation form`.split(/\s+/));

const markdown = markdownit("commonmark", { html: false, breaks: true }).enable(["table", "strikethrough"]);
markdown.disable(["link", "image", "autolink", "reference", "entity", "code", "html_block", "html_inline", "lheading"]);
markdown.inline.ruler.before("emphasis", "product", (state, silent) => {
  // "78*6*2" is no emphasis
  const [before, here, after] = [state.src[state.pos - 1], state.src[state.pos], state.src[state.pos + 1]];
  if (here !== "*" || !/[\w)\]]/.test(before ?? "") || !/[\w(\[]/.test(after ?? "")) return false;
  if (!silent) state.pending += "*";
  state.pos += 1;
  return true;
});
markdown.inline.ruler.before("escape", "math", (state, silent) => {
  const found = mathAt(state.src, state.pos, state.posMax);
  if (!found) return false;
  if (!silent) Object.assign(state.push("math", "math", 0), { content: found.tex, info: found.isDisplay ? "block" : "inline" });
  state.pos = found.end;
  return true;
});
markdown.block.ruler.before("fence", "math", (state, line, last, silent) => {
  const from = state.bMarks[line] + state.tShift[line];
  const start = /^[\ue000-\ue002]*/.exec(state.src.slice(from, from + 9))[0].length + from;
  if (!state.src.startsWith("$$", start) && !state.src.startsWith("\\[", start)) return false;
  const found = mathAt(state.src, start, state.eMarks[last - 1]);
  if (!found) return false;
  let end = line;
  while (end < last && state.eMarks[end] < found.end) end += 1;
  if (silent) return true;
  const signs = state.src.slice(from, start);
  const rest = state.src.slice(found.end, state.eMarks[end]);
  const hasWords = Boolean(rest.replace(SIGNS, "").trim());
  const meta = { before: signs, after: hasWords ? "" : rest.trim() };
  Object.assign(state.push("math", "math", 0), { content: found.tex, info: "block", block: true, meta });
  if (hasWords) { // the line goes on behind the formula
    state.push("paragraph_open", "p", 1);
    Object.assign(state.push("inline", "", 0), { content: rest.trim(), children: [], map: [end, end + 1] });
    state.push("paragraph_close", "p", -1);
  }
  state.line = end + 1;
  return true;
}, { alt: ["paragraph", "list", "blockquote"] });
markdown.renderer.rules.math = (tokens, index) => {
  const { content, info, meta } = tokens[index];
  const tex = content.replace(SIGNS, "");
  const signs = (content.match(SIGNS) ?? []).join("");
  const escaped = markdown.utils.escapeHtml;
  let drawn;
  try {
    drawn = katex.renderToString(tex, { displayMode: info === "block", output: "mathml", throwOnError: true, strict: "ignore", trust: false, maxSize: 20, maxExpand: 300 });
  } catch {
    drawn = escaped(tex); // as it was written
  }
  return `${meta?.before ?? ""}<span class="formula ${info}${signs ? " mixed" : ""}" title="${escaped(tex)}">${drawn}</span>${signs}${meta?.after ?? ""}`;
};

/** The formula that begins at a place of a text: between dollar signs or TeX's brackets, or a bare box. */
function mathAt(text, at, end) {
  const closedBy = (open, close, isDisplay) => {
    if (!text.startsWith(open, at)) return null;
    const stop = text.indexOf(close, at + open.length);
    const tex = text.slice(at + open.length, stop);
    return stop > 0 && stop + close.length <= end && tex.trim() ? { tex, end: stop + close.length, isDisplay } : null;
  };
  const found = closedBy("$$", "$$", true) ?? closedBy("\\[", "\\]", true) ?? closedBy("\\(", "\\)", false);
  if (found) return found;
  if (text[at] === "$") {
    // A price is no formula: no blank inside the signs, no digit behind them, no empty line between
    const match = /^\$(?![\s$])((?:\\.|[^\\$])*?[^\s\\$]|[^\s\\$])\$(?!\d)/.exec(text.slice(at, end));
    return match && !/\n\s*\n/.test(match[1]) ? { tex: match[1], end: at + match[0].length, isDisplay: false } : null;
  }
  if (!/^\\f?box(ed)?\{/.test(text.slice(at, at + 8))) return null;
  let depth = 0;
  for (let k = at; k < end; k += 1) {
    if (text[k] === "\\") k += 1;
    else if (text[k] === "{") depth += 1;
    else if (text[k] === "}" && --depth === 0) return { tex: text.slice(at, k + 1), end: k + 1, isDisplay: false };
  }
  return null;
}

/** Signs in front of what begins a line's block (a list, a heading, a table) go behind it, so that it still begins the line. */
function settled(source) {
  let carried = "";
  const lines = source.split("\n").map((line) => {
    line = carried + line;
    carried = "";
    const isRule = /-/.test(line) && /^[\s|:\ue000-\ue002-]+$/.test(line); // below the head of a table
    if (isRule || /^[\s\ue000-\ue002]*(```|~~~)/.test(line)) {
      carried = (line.match(SIGNS) ?? []).join("");
      return line.replace(SIGNS, "");
    }
    const begun = /^(?:[\s|\ue000-\ue002]|[-*+>](?=[\s\ue000-\ue002])|#{1,6}(?=[\s\ue000-\ue002])|\d{1,9}[.)](?=[\s\ue000-\ue002]))*/.exec(line)[0];
    return begun.replace(SIGNS, "") + (begun.match(SIGNS) ?? []).join("") + line.slice(begun.length);
  });
  return lines.join("\n") + carried;
}

/** Sets the text in an element: its text nodes are the student's, its marks the teacher's, other elements commands. */
function typeset(container) {
  container.written = [...container.childNodes];
  const chips = [];
  const pieces = [...container.childNodes].map((node) => {
    const words = node.textContent.replace(SIGNS, "\ufffd");
    if (node.nodeName === "#text") return words;
    if (node.nodeName === "MARK") return OPEN + words + CLOSE;
    chips.push(node.cloneNode(true));
    return CHIP;
  });
  const parsed = new DOMParser().parseFromString(markdown.render(settled(pieces.join(""))), "text/html");
  const state = { isTeacher: false, chips };
  container.replaceChildren(...kept(parsed.body, state));
  container.classList.add("typeset");
}

/** Shows the text of an element as it was written. */
function untypeset(container) {
  if (!container.written) return;
  container.replaceChildren(...container.written);
  container.classList.remove("typeset");
}

const byTeacher = (nodes, title) => {
  const mark = element("mark", "teacher");
  mark.title = title;
  mark.append(...nodes);
  return mark;
};

/** The known elements below a parsed node, with authors marked. */
function kept(parent, state) {
  const made = [];
  for (const node of parent.childNodes) {
    if (node.nodeName === "#text") {
      for (const [part] of node.data.matchAll(/[\ue000-\ue002]|[^\ue000-\ue002]+/g)) {
        if (part === CHIP) made.push(...[state.chips.shift()].filter(Boolean));
        else if (part === OPEN || part === CLOSE) state.isTeacher = part === OPEN;
        else if (state.isTeacher && part.trim()) made.push(byTeacher([part], "written by the teacher"));
        else made.push(part);
      }
    } else if (node.classList?.contains("formula")) {
      const formula = element("span", node.className);
      formula.title = node.title;
      formula.append(...copied(node));
      const isMixed = node.classList.contains("mixed");
      if (isMixed || state.isTeacher) made.push(byTeacher([formula], isMixed ? "written by both" : "written by the teacher"));
      else made.push(formula);
    } else if (ELEMENTS.has(node.localName)) {
      const copy = document.createElement(node.localName);
      if (node.localName === "ol" && node.start !== 1) copy.start = node.start;
      copy.append(...kept(node, state));
      made.push(copy);
    }
  }
  return made;
}

// Browsers draw no `mathvariant` but the letters that Unicode has for it: the first of A to Z, of a to z and of 0 to 9
const ALPHABETS = {
  bold: [0x1d400, 0x1d41a, 0x1d7ce], "bold-italic": [0x1d468, 0x1d482], "double-struck": [0x1d538, 0x1d552, 0x1d7d8],
  script: [0x1d49c, 0x1d4b6], fraktur: [0x1d504, 0x1d51e], "sans-serif": [0x1d5a0, 0x1d5ba, 0x1d7e2], monospace: [0x1d670, 0x1d68a, 0x1d7f6],
};
const ELSEWHERE = { // those that Unicode had before
  "double-struck": { C: "\u2102", H: "\u210d", N: "\u2115", P: "\u2119", Q: "\u211a", R: "\u211d", Z: "\u2124" },
  script: { B: "\u212c", E: "\u2130", F: "\u2131", H: "\u210b", I: "\u2110", L: "\u2112", M: "\u2133", R: "\u211b", e: "\u212f", g: "\u210a", o: "\u2134" },
  fraktur: { C: "\u212d", H: "\u210c", I: "\u2111", R: "\u211c", Z: "\u2128" },
};

function inAlphabet(text, variant) {
  return [...text].map((letter) => {
    const kind = /[A-Z]/.test(letter) ? 0 : /[a-z]/.test(letter) ? 1 : /[0-9]/.test(letter) ? 2 : -1;
    const first = ALPHABETS[variant][kind];
    if (first === undefined) return letter;
    return ELSEWHERE[variant]?.[letter] ?? String.fromCodePoint(first + letter.charCodeAt(0) - "Aa0".charCodeAt(kind));
  }).join("");
}

/** A formula's known elements and attributes; other elements are left out with what is in them. */
function copied(parent) {
  return [...parent.childNodes].flatMap((node) => {
    if (node.nodeName === "#text") return [node.data];
    if (!ELEMENTS.has(node.localName)) return [];
    const copy = document.createElementNS(node.namespaceURI, node.localName);
    for (const { name, value } of node.attributes) if (ATTRIBUTES.has(name)) copy.setAttribute(name, value);
    const variant = node.getAttribute("mathvariant");
    copy.append(...(ALPHABETS[variant] ? [inAlphabet(node.textContent, variant)] : copied(node)));
    return [copy];
  });
}
