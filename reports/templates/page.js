"use strict";
// What the pages share: plots in the page's colours, tables that sort.
const page = (() => {
  const text = (id) => document.getElementById(id).textContent;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };

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

  // Plotly takes longer to start than all the rest: it waits until the first plot is wanted.
  const plotly = () => {
    if (!window.Plotly) {
      const script = document.createElement("script");
      script.textContent = text("plotly");
      document.head.append(script);
    }
    return window.Plotly;
  };

  // Sorting: by data-order where a cell has one, else by its text; cells without a number stay last.
  const key = (cell) => {
    if (cell.dataset.order === undefined) return cell.textContent.trim().toLowerCase();
    return cell.dataset.order === "" ? null : Number(cell.dataset.order);
  };
  const compare = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b));
  // Puts the rows in the order that the headings show; a table that nobody sorted stays as it is.
  const arrange = (table) => {
    const heading = table.querySelector("thead [aria-sort]");
    if (!heading) return;
    const sign = heading.getAttribute("aria-sort") === "ascending" ? 1 : -1;
    const rows = [...table.tBodies[0].rows].map((row) => [key(row.cells[heading.cellIndex]), row]);
    rows.sort(([a], [b]) => (a === null) - (b === null) || (a === null ? 0 : sign * compare(a, b)));
    table.tBodies[0].append(...rows.map(([, row]) => row));
  };
  const sort = (heading) => {
    const order = heading.getAttribute("aria-sort") === "descending" ? "ascending" : "descending";
    for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", order);
    arrange(heading.closest("table"));
  };
  for (const heading of document.querySelectorAll(".sortable thead th")) {
    heading.tabIndex = 0;
    heading.addEventListener("click", () => sort(heading));
    heading.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      sort(heading);
    });
  }
  return { text, dark, config, colours, plotly, arrange };
})();
