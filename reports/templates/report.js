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

  // Plotly takes longer to start than all the rest: it waits until the first plot is wanted.
  const plotly = () => {
    if (!window.Plotly) {
      const script = document.createElement("script");
      script.textContent = text("plotly");
      document.head.append(script);
    }
    return window.Plotly;
  };

  const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
  // A plot is drawn when it comes near the window, all of them before printing: a report can have hundreds.
  const drawn = new Map();
  const draw = (plot) => {
    if (drawn.has(plot)) return;
    const { data, layout } = JSON.parse(text(`${plot.id}-figure`));
    drawn.set(plot, layout);
    plotly().newPlot(plot, data, layout, config).then(() => Plotly.relayout(plot, colours(layout)));
  };
  const near = new IntersectionObserver(
    (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => draw(entry.target)),
    { rootMargin: "600px" },
  );
  const plots = document.querySelectorAll(".plot");
  plots.forEach((plot) => near.observe(plot));
  addEventListener("beforeprint", () => {
    for (const closed of document.querySelectorAll("details.method")) closed.open = true;
    plots.forEach(draw);
  });
  dark.addEventListener("change", () => {
    for (const [plot, layout] of drawn) Plotly.relayout(plot, colours(layout));
  });

  // Files are made when they are asked for.
  const rawData = () => {
    const bytes = Uint8Array.from(atob(text("raw-data")), (character) => character.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  };
  const offer = (link, content) => {
    link.addEventListener("click", async (event) => {
      if (link.href.startsWith("blob:")) return;
      event.preventDefault();
      link.href = URL.createObjectURL(new Blob([await content()], { type: "application/json" }));
      link.click();
    });
  };
  offer(document.getElementById("download"), rawData);
  for (const raw of document.querySelectorAll(".raw")) {
    offer(raw, async () => JSON.stringify(JSON.parse(await rawData()).findings[Number(raw.dataset.finding)], null, 1));
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
