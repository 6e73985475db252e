// What a policy makes through training: pictures, or an episode's positions, with a slider over steps.
(() => {
  const moments = DATA.snapshots;
  const place = document.getElementById("snapshot-viewer");
  if (!place || !moments.length) return;
  const slider = place.querySelector("input");
  const said = place.querySelector("output");
  const what = place.querySelector(".note");
  const stage = place.querySelector(".shown");
  slider.max = moments.length - 1;
  slider.value = moments.length - 1;
  slider.disabled = moments.length < 2;

  function picture(each) {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = each.side;
    const context = canvas.getContext("2d");
    const image = context.createImageData(each.side, each.side);
    for (let i = 0; i < each.side * each.side; i++) {
      const value = parseInt(each.hex.slice(2 * i, 2 * i + 2), 16);
      image.data.set([value, value, value, 255], 4 * i);
    }
    context.putImageData(image, 0, 0);
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", each.caption);
    const figure = document.createElement("figure");
    if (each.right !== undefined) figure.className = each.right ? "right" : "wrong";
    const caption = document.createElement("figcaption");
    caption.textContent = each.caption + (each.right === false ? " ✗" : "");
    figure.append(canvas, caption);
    return figure;
  }

  const line = (name, x, y, colour, dash) => ({ name, x, y, colour, dash: !!dash, faint: false, markers: false, low: null, high: null, text: null, kind: "line" });
  const chart = (x, y, series, equal) => ({ title: y, x, y, series, levels: [], y_range: null, log_y: false, stacked: false, equal: !!equal });
  const steps = (list) => list.map((_, i) => i);

  function episode(each) {
    const charts = [];
    if (each.tracks) {
      const names = Object.keys(each.tracks);
      const path = (a, b) => names.map((name, i) => ({ ...line(name, each.tracks[name].map((p) => p[a]), each.tracks[name].map((p) => p[b]), i), markers: each.tracks[name].every((p) => Math.hypot(p[a] - each.tracks[name][0][a], p[b] - each.tracks[name][0][b]) < 0.002) }));
      charts.push(chart("x (m)", "from above: y (m)", path(0, 1), true));
      charts.push(chart("actions", "height z (m)", names.map((name, i) => {
        const track = each.tracks[name], x = track.length > 1 ? steps(track) : steps(each.rewards);
        return line(name, x, track.length > 1 ? track.map((p) => p[2]) : x.map(() => track[0][2]), i, track.length < 2);
      })));
    } else charts.push(chart("actions", "what is seen", Object.entries(each.entries).map(([name, y], i) => line(name, steps(y), y, i))));
    charts.push(chart("actions", "reward", [line("reward", steps(each.rewards), each.rewards, 3)]));
    return charts;
  }

  function show() {
    const moment = moments[Number(slider.value)];
    said.textContent = `after ${moment.step} updates`;
    slider.setAttribute("aria-valuetext", said.textContent);
    what.textContent = moment.what;
    if (moment.pictures) { stage.className = "shown pictures"; stage.replaceChildren(...moment.pictures.map(picture)); return; }
    const charts = episode(moment.episode);
    stage.className = "shown grid";
    while (stage.children.length < charts.length) {
      const figure = document.createElement("figure");
      figure.className = "chart";
      figure.innerHTML = "<figcaption><strong></strong></figcaption><div class='plot'></div>";
      stage.append(figure);
    }
    charts.forEach((each, i) => {
      stage.children[i].querySelector("strong").textContent = each.title;
      drawChart(stage.children[i].querySelector(".plot"), each);
    });
  }
  slider.addEventListener("input", show);
  document.addEventListener("recoloured", show);
  show();
})();
