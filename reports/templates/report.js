"use strict";
(() => {
  const text = (id) => document.getElementById(id).textContent;
  const dark = matchMedia("(prefers-color-scheme: dark)");

  // Plots take the page's colours, so that they follow light and dark mode.
  const colours = (layout) => {
    const style = getComputedStyle(document.documentElement);
    const [ink, grid, card] = ["--text", "--grid", "--card"].map((name) => style.getPropertyValue(name).trim());
    const update = { "font.color": ink, "hoverlabel.bgcolor": card, "hoverlabel.font.color": ink };
    for (const axis of Object.keys(layout).filter((name) => /^[xy]axis\d*$/.test(name))) {
      update[`${axis}.gridcolor`] = grid;
      update[`${axis}.zerolinecolor`] = grid;
    }
    return update;
  };

  const figures = JSON.parse(text("figures"));
  const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
  for (const [id, { data, layout }] of Object.entries(figures)) {
    Plotly.newPlot(id, data, layout, config).then((plot) => Plotly.relayout(plot, colours(layout)));
  }
  dark.addEventListener("change", () => {
    for (const [id, { layout }] of Object.entries(figures)) Plotly.relayout(id, colours(layout));
  });

  const link = document.getElementById("download");
  link.href = URL.createObjectURL(new Blob([text("raw-data")], { type: "application/json" }));

  // Sorting: by data-order where a cell has one, else by its text; cells without a number stay last.
  const key = (cell) => {
    if (cell.dataset.order === undefined) return cell.textContent.trim().toLowerCase();
    return cell.dataset.order === "" ? null : Number(cell.dataset.order);
  };
  const compare = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b));
  const sort = (heading) => {
    const index = heading.cellIndex;
    const body = heading.closest("table").tBodies[0];
    const sign = heading.getAttribute("aria-sort") === "descending" ? 1 : -1;
    for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const rows = [...body.rows].map((row) => [key(row.cells[index]), row]);
    rows.sort(([a], [b]) => (a === null) - (b === null) || (a === null ? 0 : sign * compare(a, b)));
    body.append(...rows.map(([, row]) => row));
  };
  for (const heading of document.querySelectorAll(".sortable thead th")) heading.addEventListener("click", () => sort(heading));
})();
