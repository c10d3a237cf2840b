"use strict";

// Tables: a click on a heading sorts by it, a second click turns the order round. Undefined values stay last.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  headings.forEach((heading, index) => {
    heading.querySelector("button").addEventListener("click", () => {
      const value = (row) => row.cells[index].dataset.sort;
      const rows = [...body.rows];
      const numeric = rows.every((row) => value(row) === "" || Number.isFinite(Number(value(row))));
      // Numbers begin with the largest, names with A.
      const turn = { ascending: "descending", descending: "ascending", none: numeric ? "descending" : "ascending" };
      const order = turn[heading.getAttribute("aria-sort")];
      const sign = order === "ascending" ? 1 : -1;
      rows.sort((one, two) => {
        const [a, b] = [value(one), value(two)];
        if (a === "" || b === "") return (a === "") - (b === "");
        return sign * (numeric ? Number(a) - Number(b) : a.localeCompare(b));
      });
      headings.forEach((each) => each.setAttribute("aria-sort", each === heading ? order : "none"));
      body.append(...rows);
    });
  });
}

// Copying: the sources of the tables stand in hidden text areas.
const status = document.getElementById("status");
for (const button of document.querySelectorAll("button.copy")) {
  button.addEventListener("click", async () => {
    const area = document.getElementById(button.dataset.source);
    try {
      await navigator.clipboard.writeText(area.value);
    } catch {
      // Some browsers refuse the clipboard to pages opened from disk; the old way still works there.
      area.hidden = false;
      area.select();
      document.execCommand("copy");
      area.hidden = true;
    }
    status.textContent = `${button.textContent.replace("Copy ", "")} copied`;
    setTimeout(() => (status.textContent = ""), 1800);
  });
}

// Enlarging: left and right walk through the pictures of a group, up and down through the scenes of one column.
const viewer = document.getElementById("viewer");
let tiles = [];
let at = 0;

function show(index) {
  at = (index + tiles.length) % tiles.length;
  const tile = tiles[at];
  viewer.className = tile.dataset.group;
  viewer.querySelector("img").src = tile.querySelector("img").src;
  viewer.querySelector("img").alt = tile.querySelector("img").alt;
  viewer.querySelector("strong").textContent = tile.dataset.title;
  viewer.querySelector("span").textContent = tile.dataset.text;
}

for (const tile of document.querySelectorAll("button.tile")) {
  tile.addEventListener("click", () => {
    tiles = [...document.querySelectorAll(`button.tile[data-group="${tile.dataset.group}"]`)];
    show(tiles.indexOf(tile));
    viewer.showModal();
  });
}
for (const button of viewer.querySelectorAll("button")) {
  button.addEventListener("click", () => {
    const step = Number(button.dataset.step);
    if (step) show(at + step);
    else viewer.close();
  });
}
viewer.addEventListener("keydown", (event) => {
  const columns = Number(tiles[at].dataset.columns || 1);
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
  if (step === undefined) return;
  event.preventDefault();
  show(at + step);
});
viewer.addEventListener("click", (event) => {
  if (event.target === viewer) viewer.close();
});
viewer.addEventListener("close", () => tiles[at].focus());

// Colours of right and wrong: each pixel of a map is an outcome's colour, so another convention is a swap of colours.
// conventions[name][outcome] is [colour, its name].
const chooser = document.getElementById("convention");
if (chooser) {
  const conventions = JSON.parse(document.getElementById("conventions").textContent);
  let current = chooser.value;

  const recoloured = async (image, from, to) => {
    await image.decode();
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
    const swap = new Map(Object.keys(from).map((outcome) => [from[outcome][0].join(), to[outcome][0]]));
    for (let place = 0; place < pixels.data.length; place += 4) {
      pixels.data.set(swap.get(pixels.data.slice(place, place + 3).join()), place);
    }
    context.putImageData(pixels, 0, 0);
    image.src = canvas.toDataURL();
  };

  chooser.addEventListener("change", async () => {
    const [from, to] = [conventions[current], conventions[chooser.value]];
    current = chooser.value;
    chooser.disabled = true; // a second change must not start from half-coloured maps
    for (const swatch of document.querySelectorAll(".swatch[data-outcome]")) {
      swatch.style.background = `rgb(${to[swatch.dataset.outcome][0].join()})`;
    }
    for (const word of document.querySelectorAll(".word")) word.textContent = to[word.dataset.outcome][1];
    await Promise.all([...document.querySelectorAll("img.map")].map((image) => recoloured(image, from, to)));
    chooser.disabled = false;
  });
}
