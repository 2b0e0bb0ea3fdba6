// The chat page: asks the server as any OpenAI client does, and shows who writes while it is written.

const find = (selector) => document.querySelector(selector);
const about = JSON.parse(find("#about").textContent);
const form = find(".composer");
const fields = form.elements;
const talk = find(".talk");
const send = find(".send");
const scroller = find("main");

// The dial: a bias on the tokens that begin a call. The ends are never and always.
const DIAL = [
  [-100, "never"], [-4, "hardly ever"], [-2, "rarely"], [-1, "less often"], [0, "as trained"],
  [1, "more often"], [2, "often"], [4, "very often"], [100, "always"],
];

const turns = []; // what was said, for the next question
const NOTHING = { student: 0, teacher: 0, calls: 0, paid: 0, alone: 0, isWhole: true };
const total = { ...NOTHING };
let underWay = null; // the AbortController of the answer that is being written
const isScrolledDown = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 60;

// --- what it costs ---

/** Writes into a count what it costs. What is unknown of the reading is left out, or taken as cached: `isWhole` is false. */
function price(count, usage) {
  if (!about.prices) return;
  count.isWhole = true;
  const cost = (name, written, read, cached) => {
    const prices = about.prices[name];
    if (read !== 0 && (read === null || cached === null || prices.read === null)) count.isWhole = false;
    const all = read ?? 0;
    const fromCache = Math.min(cached ?? all, all);
    return ((all - fromCache) * prices.read + fromCache * prices.cached + written * prices.write) / 1e6;
  };
  const { student_read_tokens: s = null, student_cached_tokens: sc = null } = usage ?? {};
  const { teacher_read_tokens: t = null, teacher_cached_tokens: tc = null } = usage ?? {};
  count.paid = cost("student", count.student, s, sc) + cost("teacher", count.teacher, t, tc);
  const prompt = usage?.prompt_tokens ?? 0;
  count.alone = (prompt * about.prices.teacher.read + (count.student + count.teacher) * about.prices.teacher.write) / 1e6;
}

function shownMoney(value) {
  const digits = value === 0 ? 2 : Math.min(12, Math.max(2, 1 - Math.floor(Math.log10(value))));
  return `${value.toFixed(digits)} ${about.prices.currency}`;
}

function costWords({ student, teacher, calls, paid, alone, isWhole }, isTotal = false) {
  const all = student + teacher;
  const words = [
    `${all ? ((100 * teacher) / all).toFixed(teacher && teacher < all / 10 ? 1 : 0) : 0} % by the teacher (${teacher} of ${all} tokens)`,
    `${calls} ${calls === 1 ? "call" : "calls"}`,
  ];
  if (about.prices) {
    const shown = `${isWhole ? "" : "at least "}${shownMoney(paid)}`;
    words.push(isTotal ? `${shown} (teacher alone about ${shownMoney(alone)})` : shown);
  }
  return words;
}

function showTotal() {
  const all = total.student + total.teacher;
  find(".total").textContent = all ? `This chat: ${costWords(total, true).join(" \u00b7 ")}` : "Enter sends, Shift+Enter makes a new line, Esc stops.";
}

// --- an answer ---

class Answer {
  constructor() {
    this.count = { ...NOTHING };
    this.text = "";
    this.pieces = []; // who wrote what, in order
    this.isDue = false;
    this.node = element("article", "answer writing");
    this.node.setAttribute("aria-label", "Answer");
    this.node.setAttribute("aria-busy", "true");
    this.said = element("div", "said");
    this.cost = element("p", "cost");
    this.node.append(this.said, this.cost);
  }

  add(text, author, tokens) {
    if (tokens) this.count[author] += tokens;
    if (author === "teacher" && this.pieces.at(-1)?.author !== "teacher" && text) this.count.calls += 1;
    if (text) {
      this.text += text;
      const last = this.pieces.at(-1);
      if (last?.author === author) last.text += text;
      else this.pieces.push({ author, text });
      this.drawSoon();
    }
    this.showCost();
  }

  /** Sets the answer once for all that comes before the next frame. */
  drawSoon() {
    if (this.isDue) return;
    this.isDue = true;
    requestAnimationFrame(() => {
      if (!this.isDue) return; // it has ended and is drawn
      const isAtEnd = isScrolledDown();
      this.draw();
      if (isAtEnd) scroller.scrollTop = scroller.scrollHeight;
    });
  }

  draw() {
    this.isDue = false;
    this.said.replaceChildren(...this.pieces.map(drawSegment));
    typeset(this.said);
  }

  showCost(usage = null) {
    price(this.count, usage);
    const all = this.count.student + this.count.teacher;
    const share = element("span", "share");
    const part = element("b");
    part.style.width = `${all ? (100 * this.count.teacher) / all : 0}%`;
    share.append(part);
    share.setAttribute("aria-hidden", "true");
    this.cost.replaceChildren(share, ...costWords(this.count).map((words) => element("span", "", words)));
  }

  /** The end: the server's own count where there is one, and what the reader should know. */
  close(usage, notes) {
    if (usage) Object.assign(this.count, { student: usage.student_tokens, teacher: usage.teacher_tokens, calls: usage.calls });
    this.draw();
    this.showCost(usage);
    for (const note of notes) this.cost.append(element("span", "note", note));
    if (this.text) {
      const copy = element("button", "quiet", "Copy");
      copy.type = "button";
      copy.addEventListener("click", async () => {
        try {
          await navigator.clipboard.writeText(this.text);
          copy.textContent = "Copied";
        } catch {
          copy.textContent = "Not allowed";
        }
        setTimeout(() => { copy.textContent = "Copy"; }, 1500);
      });
      this.cost.append(copy);
    }
    this.node.classList.remove("writing");
    this.node.setAttribute("aria-busy", "false");
    if (!this.node.isConnected) return; // another chat has begun
    for (const name of ["student", "teacher", "calls", "paid", "alone"]) total[name] += this.count[name];
    total.isWhole &&= this.count.isWhole;
    showTotal();
  }

  fail(message) {
    const problem = element("p", "problem", message);
    problem.setAttribute("role", "alert");
    this.node.insertBefore(problem, this.cost);
  }
}

// --- the server ---

function headers() {
  const key = fields.key.value.trim();
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

/** The events of a stream, one parsed object each. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (part.startsWith("data: {")) yield JSON.parse(part.slice(6));
    }
  }
}

async function refusal(reply) {
  let message = `The server answered with status ${reply.status}.`;
  try { message = (await reply.json()).error.message; } catch { /* no JSON */ }
  const wait = reply.headers.get("Retry-After");
  if (reply.status === 401) {
    find(".key").hidden = false;
    fields.key.focus();
  }
  return wait ? `${message} Try again in ${wait} s.` : message;
}

async function write(answer, messages, signal) {
  const reply = await fetch("v1/chat/completions", {
    method: "POST",
    headers: headers(),
    signal,
    body: JSON.stringify({
      model: about.model,
      messages,
      stream: true,
      stream_options: { include_usage: true },
      call_bias: DIAL[fields.bias.value][0],
      show_commands: fields.commands.checked,
    }),
  });
  if (!reply.ok) throw new Error(await refusal(reply));
  const found = { usage: null, notes: [] };
  for await (const event of events(reply.body)) {
    if (event.error) throw new Error(event.error.message);
    if (event.usage) found.usage = event.usage;
    for (const choice of event.choices ?? []) {
      const relay = choice.relay;
      if (relay?.author) {
        answer.add(choice.delta?.content ?? "", relay.author, relay.tokens);
      }
      if (relay?.teacher_failed) found.notes.push("the teacher failed; the student went on alone");
      if (choice.finish_reason === "length") found.notes.push("cut at the length limit");
    }
  }
  return found;
}

async function ask(text) {
  const said = element("div", "user said", text);
  typeset(said);
  said.setAttribute("aria-label", "You");
  const answer = new Answer();
  find(".welcome").hidden = true;
  talk.append(said, answer.node);
  scroller.scrollTop = scroller.scrollHeight;
  const question = { role: "user", content: text };
  const messages = fields.remember.checked ? [...turns, question] : [question];
  const control = new AbortController();
  setBusy(control);
  let found = { usage: null, notes: [] };
  try {
    found = await write(answer, messages, control.signal);
    turns.push(question, { role: "assistant", content: answer.text });
  } catch (error) {
    if (control.signal.aborted) found.notes.push("stopped");
    else if (!(error instanceof TypeError)) answer.fail(error.message);
    else answer.fail(answer.text ? "The connection broke off." : "The server cannot be reached.");
  } finally {
    answer.close(found.usage, found.notes);
    if (underWay === control) setBusy(null);
    scroller.scrollTop = scroller.scrollHeight;
  }
}

function setBusy(control) {
  underWay = control;
  send.textContent = control ? "Stop" : "Send";
  send.classList.toggle("stop", Boolean(control));
}

async function showTeacher() {
  const state = find(".teacher-state");
  let words = "";
  try {
    const { teacher } = await (await fetch("ready")).json();
    words = { up: "", down: "teacher down: the student answers alone", none: "without a teacher" }[teacher] ?? "";
  } catch {
    words = "server not reachable";
  }
  if (state.textContent !== words) state.textContent = words;
}

// --- the form ---

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (underWay) {
    underWay.abort();
    return;
  }
  const text = fields.text.value;
  if (!text.trim()) return;
  fields.text.value = "";
  ask(text);
  fields.text.focus();
});

fields.text.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (!underWay) form.requestSubmit();
  }
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && underWay) underWay.abort();
});

function showDial() {
  const words = DIAL[fields.bias.value][1];
  form.querySelector(".dial output").value = words;
  fields.bias.setAttribute("aria-valuetext", words);
}

fields.bias.addEventListener("input", showDial);

find(".fresh").addEventListener("click", () => {
  underWay?.abort();
  turns.length = 0;
  Object.assign(total, NOTHING);
  talk.replaceChildren();
  find(".welcome").hidden = false;
  showTotal();
  fields.text.focus();
});

fields.remember.checked = about.remembers;
followTheme(find(".theme"));
showDial();
showTotal();
showTeacher();
setInterval(showTeacher, 10_000);
