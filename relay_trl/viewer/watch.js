// The viewer: keeps a run's groups, filters them, and has only those in the page that can be seen.

const GAP = 600; // pixels above and below the screen that are drawn too
const KINDS = { student_solvable: "student-solvable", teacher_dependent: "teacher-dependent", teacher_unsolvable: "teacher-unsolvable" };
const PERIOD_MS = 2000;
const find = (selector) => document.querySelector(selector);
const form = find(".filters");
const list = find(".list");
const newer = find(".newer");

const run = { epoch: -1, groups: [], figures: [] }; // groups by id, the oldest first
let shown = []; // groups that the filters let through, the newest first
let heights = new Map(); // measured, by id
let offsets = [0]; // of the shown groups; one more than there are groups
let drawn = new Map(); // elements, by id

// --- which groups ---

const wanted = () => ({ ...Object.fromEntries(new FormData(form)), text: form.elements.text.value.trim().toLowerCase() });

function fits(rollout, want) {
  return (!want.called || rollout.called)
    && (!want.wrong || rollout.correct === false)
    && (!want.malformed || rollout.malformed > 0)
    && (!want.failed || rollout.correct === null);
}

const isPicky = (want) => Boolean(want.called || want.wrong || want.malformed || want.failed);

function questionOf(prompt) {
  return typeof prompt === "string" ? prompt : prompt.map((message) => String(message.content ?? "")).join("\n\n");
}

function matches(group, want) {
  if (want.hard && group.kind !== "teacher_dependent" && group.kind !== "teacher_unsolvable") return false;
  if (want.text && !questionOf(group.prompt).toLowerCase().includes(want.text)) return false;
  return !isPicky(want) || group.rollouts.some((rollout) => fits(rollout, want));
}

function filter() {
  const want = wanted();
  shown = run.groups.filter((group) => matches(group, want)).reverse();
  const all = run.groups.reduce((sum, group) => sum + group.rollouts.length, 0);
  const left = shown.reduce((sum, group) => sum + group.rollouts.filter((rollout) => fits(rollout, want)).length, 0);
  form.querySelector("output").value = `${left.toLocaleString("en")} of ${all.toLocaleString("en")} rollouts, ${shown.length.toLocaleString("en")} groups`;
  find(".nothing").hidden = shown.length > 0 || run.groups.length === 0;
}

// --- drawing ---

// What is shown as 0.00 has no sign
const size = (value) => Math.abs(value).toFixed(2);
const sign = (value, plus) => (Number(size(value)) === 0 ? "" : value < 0 ? "\u2212" : plus);
const plain = (value) => sign(value, "") + size(value);
const signed = (value) => sign(value, "+") + size(value);

function drawRollout(rollout, want) {
  const verdict = { true: "right", false: "wrong", null: "failed" }[rollout.correct];
  const article = element("article", verdict);
  if (isPicky(want) && !fits(rollout, want)) article.classList.add("dim");
  const facts = element("p", "facts");
  facts.append(element("span", "verdict", verdict));
  if (rollout.reward !== null) facts.append(element("span", "", `reward ${plain(rollout.reward)}`));
  const advantage = element("span", `advantage${rollout.advantage < 0 ? " minus" : ""}`, `adv. ${signed(rollout.advantage ?? 0)}`);
  const bar = element("b");
  bar.style.width = `${Math.min(3, Math.abs(rollout.advantage ?? 0) * 1.2)}rem`;
  advantage.append(bar);
  facts.append(advantage);
  let words = `${rollout.tokens} tokens`;
  if (rollout.share) words += `, ${Math.round(100 * rollout.share)} % teacher`;
  if (rollout.malformed) words += `, ${rollout.malformed} malformed`;
  if (rollout.stop === "length") words += ", cut at the limit";
  facts.append(element("span", "hint", words));
  const text = element("pre", "text");
  text.append(...rollout.segments.map(drawSegment));
  if (!want.written) typeset(text);
  article.append(facts, text);
  if (rollout.error) article.append(element("p", "error", rollout.error));
  return article;
}

function drawGroup(group, index) {
  const want = wanted();
  const outer = element("section", "group");
  outer.setAttribute("role", "article");
  outer.setAttribute("aria-posinset", index + 1);
  outer.setAttribute("aria-setsize", shown.length);
  const card = element("div", "card");
  const header = element("header");
  const facts = element("p", "facts");
  const gold = element("span", "gold");
  gold.append(element("i", "", "gold "), Array.isArray(group.gold) ? group.gold.join(" or ") : String(group.gold));
  facts.append(gold, element("span", `kind ${group.kind ?? ""}`, KINDS[group.kind] ?? "teacher failed"), element("span", "hint", `step ${group.step}`));
  const question = element("pre", "question", questionOf(group.prompt));
  if (!want.written) typeset(question);
  header.append(question, facts);
  const rollouts = element("div", "rollouts");
  rollouts.append(...group.rollouts.map((rollout) => drawRollout(rollout, want)));
  card.append(header, rollouts);
  outer.append(card);
  return outer;
}

function layOut() {
  let sum = 0;
  for (const height of heights.values()) sum += height;
  const guess = heights.size ? sum / heights.size : 320;
  offsets = [0];
  for (const group of shown) offsets.push(offsets[offsets.length - 1] + (heights.get(group.id) ?? guess));
  list.style.height = `${offsets[offsets.length - 1]}px`;
}

function indexAt(offset) {
  let low = 0;
  let high = shown.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (offsets[middle] <= offset) low = middle; else high = middle - 1;
  }
  return Math.max(0, low);
}

const listTop = () => list.getBoundingClientRect().top + window.scrollY;

/** What is at the top of the screen, to have it there again after a change; null above the list. */
function anchor() {
  const inside = window.scrollY - listTop();
  if (inside <= 0 || shown.length === 0) return null;
  const index = indexAt(inside);
  return { id: shown[index].id, rest: inside - offsets[index] };
}

function restore(place) {
  const index = place ? shown.findIndex((group) => group.id === place.id) : -1;
  if (index >= 0) window.scrollTo(0, listTop() + offsets[index] + place.rest);
}

/** Draws what can be seen and measures it; heights that were only guessed move nothing on the screen. */
function render() {
  for (let round = 0; round < 4; round += 1) {
    const top = window.scrollY - listTop();
    const first = indexAt(top - GAP);
    const last = Math.min(shown.length, indexAt(top + window.innerHeight + GAP) + 1);
    const kept = new Map();
    for (let i = first; i < last; i += 1) {
      const group = shown[i];
      const node = drawn.get(group.id) ?? drawGroup(group, i);
      node.style.transform = `translateY(${offsets[i]}px)`;
      kept.set(group.id, node);
      if (!node.isConnected) list.append(node);
    }
    for (const [id, node] of drawn) if (!kept.has(id)) node.remove();
    drawn = kept;
    const place = anchor();
    let changed = false;
    for (const [id, node] of drawn) {
      const height = node.offsetHeight;
      if (Math.abs((heights.get(id) ?? -1) - height) > 0.5) {
        heights.set(id, height);
        changed = true;
      }
    }
    if (!changed) return;
    layOut();
    restore(place);
  }
}

function clearDrawn() {
  for (const node of drawn.values()) node.remove();
  drawn = new Map();
}

function refilter() {
  clearDrawn();
  filter();
  layOut();
  if (window.scrollY > listTop()) window.scrollTo(0, listTop() - form.offsetHeight);
  render();
}

/** Puts new groups in without moving what is being read. */
function take(groups, isOlder) {
  if (groups.length === 0) return;
  const place = anchor();
  run.groups = isOlder ? [...groups, ...run.groups] : [...run.groups, ...groups];
  const before = shown.length;
  filter();
  layOut();
  restore(place);
  render();
  if (!isOlder && place && before && shown.length > before) {
    waiting += shown.length - before;
    newer.textContent = `${waiting} newer ${waiting === 1 ? "group" : "groups"}`;
    newer.hidden = false;
  }
}

// --- following ---

let waiting = 0;

function showRun(about) {
  const names = ["student_base", "teacher", "training_set", "reward", "seed", "max_calls", "max_completion_length"];
  const known = names.filter((name) => about[name] !== null && about[name] !== undefined);
  find(".settings").replaceChildren(...known.map((name) => {
    const item = element("span");
    item.append(element("i", "", `${name.replaceAll("_", " ")} `), String(about[name]));
    return item;
  }));
}

function showStatus(text, isLive) {
  const status = find(".status");
  status.classList.toggle("live", isLive);
  if (status.textContent !== text) status.textContent = text;
}

function steps() {
  const last = Math.max(0, ...run.groups.slice(-1).map((group) => group.step), ...run.figures.slice(-1).map((entry) => entry.step));
  return run.about?.max_steps > 0 ? `step ${last} of ${run.about.max_steps}` : `step ${last}`;
}

async function ask(path) {
  const reply = await fetch(path);
  const data = await reply.json();
  if (!reply.ok) throw new Error(data.error ?? `status ${reply.status}`);
  return data;
}

async function follow() {
  const after = run.groups.length ? run.groups[run.groups.length - 1].id : -1;
  const data = await ask(`api/updates?epoch=${run.epoch}&after=${after}&figures=${run.figures.length}`);
  if (data.epoch !== run.epoch) {
    Object.assign(run, { epoch: data.epoch, groups: [], figures: [] });
    heights = new Map();
    clearDrawn();
    filter();
    layOut();
  }
  run.about = data.run;
  showRun(data.run);
  if (data.figures.length) {
    run.figures.push(...data.figures);
    drawCharts(find(".charts"), run.figures);
  }
  take(data.groups, false);
  while (run.groups.length && run.groups[0].id > data.oldest && data.oldest >= 0) {
    const older = await ask(`api/older?before=${run.groups[0].id}`);
    if (older.length === 0) break;
    take(older, true);
  }
  showStatus(steps(), true);
}

async function keepUp() {
  try {
    await follow();
  } catch (error) {
    showStatus(`The run cannot be followed (${error.message}).`, false);
  }
  setTimeout(keepUp, PERIOD_MS);
}

let isDue = false;
function soon() {
  if (isDue) return;
  isDue = true;
  requestAnimationFrame(() => { isDue = false; render(); });
}

window.addEventListener("scroll", () => {
  if (window.scrollY <= listTop()) { waiting = 0; newer.hidden = true; }
  soon();
}, { passive: true });
window.addEventListener("resize", () => { heights = new Map(); layOut(); soon(); });
newer.addEventListener("click", () => window.scrollTo(0, Math.max(0, listTop() - form.offsetHeight)));
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("input", refilter);
document.addEventListener("keydown", (event) => {
  if (event.target.matches("input[type=search]") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/") { event.preventDefault(); form.elements.text.focus(); }
  if (event.key !== "j" && event.key !== "k") return;
  const inside = window.scrollY + form.offsetHeight - listTop();
  const here = indexAt(inside + 2);
  const next = event.key === "j" ? (inside < 0 ? 0 : here + 1) : Math.max(0, here - (inside > offsets[here] + 4 ? 0 : 1));
  if (next < shown.length) window.scrollTo(0, listTop() + offsets[next] - form.offsetHeight);
});

followTheme(find(".theme"));
const brought = find("#data").textContent;
if (brought) {
  const data = JSON.parse(brought);
  Object.assign(run, { epoch: data.epoch, figures: data.figures, about: data.run });
  showRun(data.run);
  drawCharts(find(".charts"), run.figures);
  take(data.groups, false);
  showStatus(steps(), false);
} else {
  keepUp();
}
