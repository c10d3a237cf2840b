"use strict";

// Pictures: filtered by split, tags and name, sorted by a number, shown page by page.
const PAGE = 60;
const items = JSON.parse(document.getElementById("items").textContent);
const filters = [...document.querySelectorAll("[data-filter]")];
const [search, sort, turn] = ["search", "sort", "turn"].map((id) => document.getElementById(id));
let sign = 1;
let first = 0;

function fits(item) {
  const tagged = filters.every(({ value, dataset }) => {
    if (!value) return true;
    return dataset.filter === "split" ? item.split === value : (item.tags[dataset.filter] || []).includes(value);
  });
  return tagged && item.name.toLowerCase().includes(search.value.toLowerCase());
}

function sorted(found) {
  const key = sort.value;
  const compare = {
    "": () => 0,
    name: (a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }),
  }[key] || ((a, b) => a.numbers[key] - b.numbers[key]);
  return sign < 0 && !key ? found.reverse() : found.sort((a, b) => sign * compare(a, b));
}

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function tileOf(item) {
  const figure = element("figure");
  const tile = element("button", "", "tile");
  tile.type = "button";
  const numbers = Object.entries(item.numbers).map(([name, value]) => `${name} ${value}`).join(", ");
  const tags = Object.values(item.tags).flat().join(", ");
  Object.assign(tile.dataset, { group: "pictures", title: `${item.split}/${item.name}`, text: `${tags}; ${numbers}` });
  const image = element("img");
  [image.src, image.alt, image.loading] = [item.picture, `${item.split}/${item.name}: ${tags}`, "lazy"];
  tile.append(image);
  tile.addEventListener("click", () => {
    tiles = [...document.querySelectorAll("#grid .tile")];
    show(tiles.indexOf(tile));
    viewer.showModal();
  });
  const caption = element("figcaption");
  caption.append(element("strong", item.name), element("span", `${item.split} · ${tags}`));
  for (const note of item.notes) caption.append(element("div", note, "wrong"));
  figure.append(tile, caption);
  return figure;
}

function refresh() {
  const found = sorted(items.filter(fits));
  first = Math.max(0, Math.min(first, PAGE * Math.floor((found.length - 1) / PAGE)));
  document.getElementById("grid").replaceChildren(...found.slice(first, first + PAGE).map(tileOf));
  const last = Math.min(first + PAGE, found.length);
  document.getElementById("where").textContent = found.length
    ? `${first + 1} to ${last} of ${found.length} pictures`
    : "no picture is like that";
  document.getElementById("back").disabled = first === 0;
  document.getElementById("on").disabled = last === found.length;
}

function again() {
  first = 0;
  refresh();
}

for (const control of [...filters, sort]) control.addEventListener("change", again);
search.addEventListener("input", again);
turn.addEventListener("click", () => {
  sign = -sign;
  again();
});
for (const [id, step] of [["back", -PAGE], ["on", PAGE]]) {
  document.getElementById(id).addEventListener("click", () => {
    first += step;
    refresh();
  });
}
refresh();
