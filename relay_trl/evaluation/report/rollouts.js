const form = document.querySelector(".filters");
const problems = [...document.querySelectorAll(".problem")];
const nothing = document.querySelector(".nothing");

function apply() {
  const wanted = Object.fromEntries(new FormData(form));
  const fits = (name, value) => !wanted[name] || wanted[name] === value;
  let shown = 0;
  let total = 0;
  for (const problem of problems) {
    const isKind = fits("kind", problem.dataset.kind) && fits("benchmark", problem.dataset.benchmark);
    let inside = 0;
    for (const article of problem.querySelectorAll("article")) {
      const { method, verdict, called } = article.dataset;
      const isShown = isKind && fits("method", method) && fits("verdict", verdict) && fits("called", called);
      article.hidden = !isShown;
      inside += isShown;
      total += 1;
    }
    problem.hidden = inside === 0;
    shown += inside;
  }
  form.querySelector("output").value = `${shown} of ${total} answers`;
  nothing.hidden = shown > 0;
}

// What is seen is typeset, or shown as it was written
const texts = [...document.querySelectorAll(".text, .question")];
const seen = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    seen.unobserve(target);
    typeset(target);
  }
}, { rootMargin: "800px" });

function showTexts() {
  for (const text of texts) {
    untypeset(text);
    if (form.elements.written.checked) seen.unobserve(text);
    else seen.observe(text);
  }
}

form.elements.written.addEventListener("change", showTexts);
showTexts();
form.addEventListener("change", apply);
form.addEventListener("submit", (event) => event.preventDefault());
apply();
