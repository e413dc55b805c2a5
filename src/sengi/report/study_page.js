"use strict";
(function () {
  const styles = getComputedStyle(document.documentElement);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const items = Array.from(document.querySelectorAll("script.chart"));

  function figuresOf(page) {
    const found = [];
    for (const root of page.roots()) {
      for (const model of root.references()) if (model.type === "Figure") found.push(model);
    }
    return found;
  }

  function paint() {
    const ink = styles.getPropertyValue("--muted").trim();
    for (const page of Bokeh.documents) {
      for (const figure of figuresOf(page)) {
        figure.title.text_color = ink;
        for (const axis of figure.left.concat(figure.below)) {
          axis.major_label_text_color = ink;
          axis.axis_label_text_color = ink;
        }
      }
    }
  }

  Promise.all(
    items.map((item) => Bokeh.embed.embed_item(JSON.parse(item.textContent), item.dataset.place)),
  ).then(function () {
    // A finger that drags means to scroll the page.
    if (matchMedia("(pointer: coarse)").matches) {
      for (const page of Bokeh.documents) {
        for (const figure of figuresOf(page)) figure.toolbar.active_drag = null;
      }
    }
    dark.addEventListener("change", paint);
    paint();
    document.documentElement.dataset.charts = "ready";
  });
})();
