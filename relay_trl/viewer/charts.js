// Small charts of a run's figures: the raw line, its running mean, and the value under the pointer.

const CHARTS = [
  { key: "relay/accuracy", title: "accuracy", unit: "%" },
  { key: "relay/teacher_share", title: "teacher share", unit: "%" },
  { key: "relay/call_rate", title: "call rate", unit: "%" },
  { key: "reward", title: "reward", unit: "" },
  { key: "relay/malformed", title: "malformed each", unit: "" },
  { key: "completions/mean_length", title: "tokens each", unit: "" },
];
const WIDTH = 300;
const HEIGHT = 80;

function shownNumber(value, unit) {
  if (unit === "%") return `${(100 * value).toFixed(1)} %`;
  return Math.abs(value) >= 100 ? value.toFixed(0) : value.toPrecision(3).replace(/\.?0+$/, "");
}

function runningMean(values) {
  const width = Math.max(1, Math.round(values.length * 0.06));
  const sums = [0];
  for (const value of values) sums.push(sums[sums.length - 1] + value);
  return values.map((_, i) => {
    const first = Math.max(0, i - ((width - 1) >> 1));
    const last = Math.min(values.length, i + (width >> 1) + 1);
    return (sums[last] - sums[first]) / (last - first);
  });
}

function line(svg, className, data) {
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("class", className);
  path.setAttribute("d", data);
  svg.append(path);
  return path;
}

function drawChart(chart, figures) {
  const points = figures.filter((entry) => typeof entry[chart.key] === "number");
  if (points.length === 0) return null;
  const values = points.map((entry) => entry[chart.key]);
  const steps = points.map((entry) => entry.step);
  const low = chart.unit === "%" ? 0 : Math.min(0, ...values);
  const high = chart.unit === "%" ? 1 : Math.max(...values, low + 1e-9);
  const span = steps[steps.length - 1] - steps[0];
  const x = (step) => (span ? ((step - steps[0]) / span) * WIDTH : 0);
  const y = (value) => HEIGHT - ((value - low) / (high - low)) * HEIGHT;
  const path = (list) => list.map((value, i) => `${i ? "L" : "M"}${x(steps[i]).toFixed(1)} ${y(value).toFixed(1)}`).join("");

  const box = element("div", "chart");
  const header = element("header");
  const output = element("output");
  const latest = `${shownNumber(values[values.length - 1], chart.unit)}`;
  output.textContent = latest;
  header.append(element("span", "", chart.title), output);
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `${chart.title} over ${points.length} steps, now ${latest}`);
  line(svg, "axis", `M0 ${HEIGHT}H${WIDTH}`);
  line(svg, "raw", path(values));
  line(svg, "mean", path(runningMean(values)));
  const cursor = line(svg, "cursor", "");
  const scale = element("div", "scale");
  scale.append(
    element("span", "", `step ${steps[0]}`),
    element("span", "", chart.unit === "%" ? "0 to 100 %" : `${shownNumber(low)} to ${shownNumber(high)}`),
    element("span", "", `${steps[steps.length - 1]}`),
  );
  svg.addEventListener("pointermove", (event) => {
    const place = svg.getBoundingClientRect();
    const wanted = steps[0] + ((event.clientX - place.left) / place.width) * span;
    let near = 0;
    steps.forEach((step, i) => { if (Math.abs(step - wanted) < Math.abs(steps[near] - wanted)) near = i; });
    cursor.setAttribute("d", `M${x(steps[near])} 0V${HEIGHT}`);
    output.textContent = `${steps[near]}: ${shownNumber(values[near], chart.unit)}`;
  });
  svg.addEventListener("pointerleave", () => {
    cursor.setAttribute("d", "");
    output.textContent = latest;
  });
  box.append(header, svg, scale);
  return box;
}

function drawCharts(section, figures) {
  section.replaceChildren(...CHARTS.map((chart) => drawChart(chart, figures)).filter(Boolean));
  section.hidden = section.childElementCount === 0;
}
