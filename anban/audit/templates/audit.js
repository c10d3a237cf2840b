"use strict";

// Files: filtered by problem, kind, fitness, path and score, shown page by page, with the evidence drawn on them.
const PAGE = 60;
const SVG = "http://www.w3.org/2000/svg";
const items = JSON.parse(document.getElementById("items").textContent);
const control = Object.fromEntries(
  ["problem", "group", "fit", "search", "score", "sort", "turn"].map((id) => [id, document.getElementById(id)]),
);
const NOTHING = control.problem.options[1].value;
const problems = [...new Set(items.flatMap((item) => item.findings.map((finding) => finding.problem)))];
let sign = 1;
let first = 0;
let found = [];

// A problem's colour: hues as far apart as the golden angle lays them.
function colour(problem) {
  return `hsl(${(problems.indexOf(problem) * 137.5) % 360} 85% 50%)`;
}

function told(item) {
  const wanted = control.problem.value;
  return item.findings.filter(({ problem }) => !wanted || problem === wanted);
}

function highest(item) {
  return Math.max(-1, ...told(item).map(({ score }) => (score === null ? -1 : score)));
}

function fits(item) {
  const { problem, group, fit, search, score } = control;
  if (problem.value === NOTHING ? item.findings.length : problem.value && !told(item).length) return false;
  if (group.value && item.group !== group.value) return false;
  if (fit.value && (fit.value === "yes") !== item.fit) return false;
  if (Number(score.value) > 0 && highest(item) < Number(score.value)) return false;
  return `${item.folder}/${item.name}`.toLowerCase().includes(search.value.toLowerCase());
}

const keys = { score: highest, pixels: (item) => item.width * item.height, bytes: (item) => item.bytes };

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function shape({ kind, points, label }, problem) {
  const [[x, y], [right, bottom]] = points;
  const corners = kind === "box" ? [[x, y], [right, y], [right, bottom], [x, bottom]] : points;
  const drawn = document.createElementNS(SVG, "polygon");
  drawn.setAttribute("points", corners.map((point) => point.join()).join(" "));
  drawn.setAttribute("class", "mark");
  drawn.setAttribute("stroke", colour(problem));
  const title = document.createElementNS(SVG, "title");
  title.textContent = label ? `${problem}: ${label}` : problem;
  drawn.append(title);
  return drawn;
}

// The picture and its evidence lie in one drawing in the picture's own pixels, so they scale together.
function fill(frame, item) {
  frame.replaceChildren();
  if (!item.picture) {
    frame.append(element("span", item.format, "none"));
    return;
  }
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("viewBox", `0 0 ${item.width} ${item.height}`);
  drawing.setAttribute("role", "img");
  drawing.setAttribute("aria-label", item.name);
  const image = document.createElementNS(SVG, "image");
  for (const [key, value] of Object.entries({ width: item.width, height: item.height, href: item.picture, preserveAspectRatio: "none" })) {
    image.setAttribute(key, value);
  }
  drawing.append(image);
  for (const finding of told(item)) drawing.append(...finding.shapes.map((each) => shape(each, finding.problem)));
  frame.append(drawing);
}

function sentences(item) {
  return told(item).map(({ problem, what, score, unfit }) => {
    const line = element("div");
    const swatch = element("span", "", "swatch");
    swatch.style.background = colour(problem);
    const sure = score === null ? "" : ` (${score.toFixed(2)})`;
    line.append(swatch, element("span", problem, unfit ? "problem unfit" : "problem"), `${sure} ${what}`);
    return line;
  });
}

function tileOf(item, place) {
  const figure = element("figure");
  const frame = element("button", "", "frame");
  frame.type = "button";
  frame.setAttribute("aria-label", `enlarge ${item.name}`);
  fill(frame, item);
  frame.addEventListener("click", () => {
    enlarge(place);
    large.showModal();
  });
  const size = item.width ? ` · ${item.width} × ${item.height}` : "";
  const caption = element("figcaption");
  caption.append(element("strong", item.name), element("span", `${item.folder} · ${item.format}${size}`), ...sentences(item));
  figure.append(frame, caption);
  return figure;
}

const large = document.getElementById("large");
let enlarged = 0;

function enlarge(place) {
  enlarged = (place + found.length) % found.length;
  const item = found[enlarged];
  large.querySelector("strong").textContent = `${item.folder}/${item.name}`;
  fill(large.querySelector(".frame"), item);
  large.querySelector(".says").replaceChildren(...sentences(item));
}

for (const button of large.querySelectorAll("[data-go]")) {
  button.addEventListener("click", () => {
    const step = Number(button.dataset.go);
    if (step) enlarge(enlarged + step);
    else large.close();
  });
}
large.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step) enlarge(enlarged + step);
});

function refresh() {
  found = items.filter(fits);
  const key = keys[control.sort.value];
  if (key) found.sort((a, b) => sign * (key(b) - key(a)));
  else if (sign < 0) found.reverse();
  first = Math.max(0, Math.min(first, PAGE * Math.floor((found.length - 1) / PAGE)));
  const last = Math.min(first + PAGE, found.length);
  document.getElementById("grid").replaceChildren(...found.slice(first, last).map((item, i) => tileOf(item, first + i)));
  document.getElementById("where").textContent = found.length
    ? `${first + 1} to ${last} of ${found.length}`
    : "no file is like that";
  document.getElementById("back").disabled = first === 0;
  document.getElementById("on").disabled = last === found.length;
}

function again() {
  first = 0;
  refresh();
}

for (const id of ["problem", "group", "fit", "sort"]) control[id].addEventListener("change", again);
for (const id of ["search", "score"]) control[id].addEventListener("input", again);
control.turn.addEventListener("click", () => {
  sign = -sign;
  again();
});
for (const [id, step] of [["back", -PAGE], ["on", PAGE]]) {
  document.getElementById(id).addEventListener("click", () => {
    first += step;
    refresh();
  });
}
for (const button of document.querySelectorAll("[data-problem]")) {
  button.addEventListener("click", () => {
    control.problem.value = button.dataset.problem;
    again();
    document.getElementById("files").scrollIntoView();
  });
}
refresh();
