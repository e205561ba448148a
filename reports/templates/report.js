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
  // A plot is drawn when it comes near the window, all of them before printing: a report can have hundreds.
  const drawn = new Set();
  const draw = (id) => {
    if (drawn.has(id)) return;
    drawn.add(id);
    const { data, layout } = figures[id];
    Plotly.newPlot(id, data, layout, config).then((plot) => Plotly.relayout(plot, colours(layout)));
  };
  const near = new IntersectionObserver(
    (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => draw(entry.target.id)),
    { rootMargin: "600px" },
  );
  for (const plot of document.querySelectorAll(".plot")) {
    plot.style.minHeight = `${figures[plot.id].layout.height}px`;
    near.observe(plot);
  }
  addEventListener("beforeprint", () => {
    for (const closed of document.querySelectorAll("details.method")) closed.open = true;
    Object.keys(figures).forEach(draw);
  });
  dark.addEventListener("change", () => {
    for (const id of drawn) Plotly.relayout(id, colours(figures[id].layout));
  });

  // Files are made when they are asked for: the raw data of a large store takes a while to copy.
  const offer = (link, content) => {
    if (link.href.startsWith("blob:")) return;
    link.href = URL.createObjectURL(new Blob([content()], { type: "application/json" }));
  };
  const link = document.getElementById("download");
  link.addEventListener("click", () => offer(link, () => text("raw-data")));
  const finding = (index) => JSON.stringify(JSON.parse(text("raw-data")).findings[index], null, 1);
  for (const raw of document.querySelectorAll(".raw")) {
    raw.addEventListener("click", () => offer(raw, () => finding(Number(raw.dataset.finding))));
  }

  // A link to a method opens it.
  const open = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target?.tagName !== "DETAILS") return;
    target.open = true;
    target.scrollIntoView();
  };
  addEventListener("hashchange", open);
  open();

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
  for (const heading of document.querySelectorAll(".sortable thead th")) {
    heading.tabIndex = 0;
    heading.addEventListener("click", () => sort(heading));
    heading.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      sort(heading);
    });
  }
})();
