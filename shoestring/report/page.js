"use strict";
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const config = () => {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name).trim();
    const font = getComputedStyle(document.body).fontFamily;
    const series = [color("--series-a"), color("--series-b"), color("--series-c"), color("--series-d"),
      color("--series-e"), color("--series-f"), color("--series-g"), color("--series-h")];
    return {
      background: "transparent",
      font,
      padding: { left: 8, right: 8, top: 4, bottom: 2 },
      view: { stroke: null },
      mark: { color: color("--series-a") },
      text: { color: color("--ink") },
      range: { category: series },
      axis: {
        labelColor: color("--quiet"), titleColor: color("--quiet"), titleFontWeight: "normal",
        gridColor: color("--line"), domainColor: color("--line"), tickColor: color("--line"),
        labelFontSize: 11, titleFontSize: 11, tickCount: 5, labelFlush: true,
      },
      axisBand: { labelPadding: 6, grid: false, ticks: false, domain: false, labelColor: color("--ink"), labelFontSize: 12 },
      legend: { labelColor: color("--ink"), labelFontSize: 12, symbolType: "circle" },
    };
  };
  const draw = async () => {
    document.documentElement.dataset.charts = "drawing";
    for (const figure of document.querySelectorAll("figure[data-chart]")) {
      const place = figure.querySelector(".plot");
      try {
        const spec = JSON.parse(figure.querySelector("script").textContent);
        const options = { mode: "vega-lite", actions: false, renderer: "svg", config: config() };
        await vegaEmbed(place, { ...spec, autosize: { type: "fit-x", contains: "padding" } }, options);
      } catch (error) {
        place.textContent = `this chart could not be drawn: ${error}`;
      }
    }
    document.documentElement.dataset.charts = "drawn";
  };
  dark.addEventListener("change", draw);
  draw();
})();
