"use strict";
(function () {
  const styles = getComputedStyle(document.documentElement);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const item = JSON.parse(document.getElementById("chart").textContent);
  const keys = ["loss", "scores", "grad_norm", "learning_rate"];

  function timeUnit(seconds) {
    return seconds > 7200 ? [3600, "hours"] : seconds > 180 ? [60, "minutes"] : [1, "seconds"];
  }

  Bokeh.embed.embed_item(item, "charts").then(function () {
    const page = Bokeh.documents[Bokeh.documents.length - 1];
    const figures = keys.map((key) => page.get_model_by_name("figure-" + key)).filter(Boolean);
    const sources = keys.concat("held_out", "phases", "chosen", "alarms").map((key) => page.get_model_by_name("source-" + key)).filter(Boolean);
    for (let i = 0, one; (one = page.get_model_by_name("source-scores-" + i)); i++) sources.push(one);
    const times = sources[0].data.time;
    const [unit, unitName] = timeUnit(times[times.length - 1]);
    const labels = { step: "step", samples: "samples seen", tokens: "tokens", time: unitName + " in steps" };

    function paint() {
      const ink = styles.getPropertyValue("--muted").trim();
      for (const figure of figures) {
        figure.title.text_color = ink;
        for (const axis of figure.left.concat(figure.below)) {
          axis.major_label_text_color = ink;
          axis.axis_label_text_color = ink;
        }
      }
    }

    function show(name) {
      const scale = name === "time" ? unit : 1;
      for (const source of sources) {
        source.data = Object.assign({}, source.data, { x: Array.from(source.data[name], (v) => v / scale) });
      }
      for (const axis of figures[figures.length - 1].below) axis.axis_label = labels[name];
      for (const figure of figures) figure.reset.emit();
      for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.axis === name));
    }

    const buttons = document.querySelectorAll(".switch button");
    for (const button of buttons) button.addEventListener("click", () => show(button.dataset.axis));
    document.querySelector(".switch").hidden = false;
    // A finger that drags means to scroll the page.
    if (matchMedia("(pointer: coarse)").matches) {
      for (const figure of figures) figure.toolbar.active_drag = null;
    }
    dark.addEventListener("change", paint);
    paint();
    document.documentElement.dataset.charts = "ready";
  });
})();
