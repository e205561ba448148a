"use strict";
(() => {
  const { text, dark, config, colours } = page;
  const figures = JSON.parse(text("figures"));
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
})();
