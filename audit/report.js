"use strict";
// Everything a model wrote reaches the page as text: this script sets textContent only.
const tip = document.getElementById("tip");

function show(svg, mark) {
  hide();
  mark.classList.add("on");
  svg.lastMark = mark;
  tip.textContent = mark.getAttribute("aria-label");
  tip.hidden = false;
  const at = mark.getBoundingClientRect(), box = tip.getBoundingClientRect(), room = document.documentElement.clientWidth;
  const left = Math.min(Math.max(at.left + at.width / 2 - box.width / 2, 8), room - box.width - 8);
  const above = at.top - box.height - 8;
  tip.style.left = left + window.scrollX + "px";
  tip.style.top = (above > 0 ? above : at.bottom + 8) + window.scrollY + "px";
}

function hide() {
  tip.hidden = true;
  for (const mark of document.querySelectorAll(".mark.on")) mark.classList.remove("on");
}

function nearest(marks, event) {
  const distance = (mark) => {
    const box = mark.getBoundingClientRect();
    return Math.hypot(box.left + box.width / 2 - event.clientX, box.top + box.height / 2 - event.clientY);
  };
  return marks.reduce((best, mark) => (distance(mark) < distance(best) ? mark : best));
}

for (const svg of document.querySelectorAll("svg.plot")) {
  const marks = [...svg.querySelectorAll(".mark")].filter((mark) => mark.querySelector("title"));
  for (const mark of marks) { // the browser's own slow tooltip gives way to ours
    const title = mark.querySelector("title");
    mark.setAttribute("aria-label", title.textContent);
    title.remove();
  }
  if (!marks.length) continue;
  svg.addEventListener("pointermove", (event) => show(svg, nearest(marks, event)));
  svg.addEventListener("pointerdown", (event) => show(svg, nearest(marks, event)));
  svg.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hide());
  svg.addEventListener("focus", () => svg.matches(":focus-visible") && show(svg, svg.lastMark || marks[marks.length - 1]));
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const at = marks.indexOf(svg.lastMark || marks[marks.length - 1]);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: marks.length - 1 }[event.key];
    if (event.key === "Escape") hide();
    if (to === undefined) return;
    event.preventDefault();
    show(svg, marks[Math.min(Math.max(to, 0), marks.length - 1)]);
  });
}

const filters = document.getElementById("filters");
if (filters) {
  const pairs = [...document.querySelectorAll("article.pair")].map((pair) => ({ pair, text: pair.textContent.toLowerCase() }));
  const filter = () => {
    const measure = filters.querySelector("input[name=measure]:checked").value;
    const flagged = document.getElementById("flagged").checked;
    const wanted = document.getElementById("wanted").value.trim().toLowerCase();
    let shown = 0;
    for (const { pair, text } of pairs) {
      const fits = (!measure || pair.dataset.measure === measure) && (!flagged || pair.dataset.flagged === "1");
      pair.hidden = !(fits && text.includes(wanted));
      shown += !pair.hidden;
    }
    document.getElementById("shown").textContent = shown === pairs.length ? "" : `${shown} of ${pairs.length} shown`;
  };
  filters.addEventListener("input", filter);
  filter(); // browsers keep what was typed over a reload
}
