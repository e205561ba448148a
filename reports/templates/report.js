"use strict";
(() => {
  const { text, dark, config, colours, plotly } = page;
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
})();
