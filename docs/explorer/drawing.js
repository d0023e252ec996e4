// The pictures: the tile matrix on a canvas, the circle and the loads as SVG. Nothing is told by colour alone: what is
// computed is filled and what is not yet a dot, and what belongs to the chosen worker has a double outline.
"use strict";
window.Explorer = window.Explorer || {};

(function () {
  const { colours, problem } = window.EXPLORER_DATA;
  const MOST_LABELLED = 31; // workers; beyond it numbers would be too small to read
  const LEAST_NUMBERED = 15; // CSS pixels of a tile that has room for a number
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const theme = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  // One colour for each worker; on a dark page without the darkest, as the library does without the palest.
  function workerColour(i, W) {
    const from = dark.matches ? 0.22 : 0;
    const place = (from + ((1 - from) * i) / Math.max(W - 1, 1)) * (colours.length - 1);
    const [low, part] = [Math.floor(place), place % 1];
    const high = Math.min(low + 1, colours.length - 1);
    return colours[low].map((value, k) => Math.round(value + part * (colours[high][k] - value)));
  }
  const css = (rgb) => `rgb(${rgb.join(" ")})`;

  // Black or white, whichever has the higher contrast (WCAG relative luminance above 0.179: black).
  function inkOn(rgb) {
    const [r, g, b] = rgb.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000" : "#fff";
  }

  // Tiles have a whole number of device pixels, so that they stay crisp at W = 133.
  function layOut(canvas, W) {
    const scale = window.devicePixelRatio || 1;
    const room = Math.min(canvas.parentElement.clientWidth, 720) * scale;
    const isLabelled = W <= MOST_LABELLED;
    let margin = Math.round((isLabelled ? 20 : 9) * scale);
    let cell = Math.max(1, Math.floor((room - margin) / W));
    if (W <= 2) cell = Math.min(cell, Math.round(160 * scale));
    const isNumbered = isLabelled && cell >= LEAST_NUMBERED * scale;
    if (isLabelled && cell < 9 * scale) margin = Math.round(9 * scale);
    canvas.width = canvas.height = margin + cell * W + 1;
    canvas.style.width = canvas.style.height = `${canvas.width / scale}px`;
    return { scale, margin, cell, side: cell * W, isNumbered, isLabelled: cell >= 9 * scale && isLabelled };
  }

  let layout = null; // of the last matrix drawn
  let palette = [];
  Explorer.picture = () => ({ margin: layout.margin, cell: layout.cell, palette });

  Explorer.drawMatrix = function (canvas, plan, state, cursor) {
    const W = plan.W;
    layout = layOut(canvas, W);
    const { scale, margin, cell, side, isNumbered, isLabelled } = layout;
    const pen = canvas.getContext("2d");
    const [page, ink, muted, line, others] = ["page", "ink", "muted", "line", "others"].map(theme);
    palette = Array.from({ length: W }, (_, i) => workerColour(i, W));
    const gap = cell >= 8 * scale ? Math.round(scale) : cell >= 6 ? 1 : 0;
    const isShown = (owner) => state.show === "all" || owner === state.worker;
    const eachPart = (visit) =>
      plan.parts.forEach((parts, tile) => parts.forEach((part) => visit(part.owner, box(part, tile), tile)));
    // a part of a tile is a stripe of its width, in proportion to keys
    const box = ({ start, stop }, tile) => {
      const h = tile % W;
      const place = (key) => Math.round(((key - plan.groupStart(h)) / plan.groupSize(h)) * cell);
      const [x, y] = [margin + h * cell + place(start), margin + Math.floor(tile / W) * cell];
      return { x, y, width: Math.max(1, place(stop) - place(start) - gap), height: cell - gap };
    };

    pen.fillStyle = page;
    pen.fillRect(0, 0, canvas.width, canvas.height);
    eachPart((owner, { x, y, width, height }) => {
      if (owner >= state.done) return;
      pen.fillStyle = isShown(owner) ? css(palette[owner]) : others;
      pen.fillRect(x, y, width, height);
    });
    clearHidden(pen, plan.seen, page);
    const dot = Math.max(1, Math.round(cell / 6));
    eachPart((owner, { x, y, width, height }) => {
      if (owner < state.done) return;
      pen.fillStyle = muted;
      pen.fillRect(x + Math.floor((width - dot) / 2), y + Math.floor((height - dot) / 2), dot, dot);
    });
    pen.strokeStyle = line;
    pen.lineWidth = 1;
    pen.strokeRect(margin - 0.5, margin - 0.5, side + 1, side + 1);
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    if (isNumbered) {
      pen.font = `${Math.round(Math.min(0.42 * cell, 15 * scale))}px system-ui, sans-serif`;
      eachPart((owner, { x, y, width, height }, tile) => {
        if (owner >= state.done || !isShown(owner) || pen.measureText(owner).width > width) return;
        const isWhole = plan.pairs[tile] === plan.groupSize(Math.floor(tile / W)) * plan.groupSize(tile % W);
        pen.fillStyle = isWhole ? inkOn(palette[owner]) : ink;
        if (!isWhole) outlined(pen, page, owner, x + width / 2, y + height / 2, scale);
        pen.fillText(owner, x + width / 2, y + height / 2);
      });
    }
    eachPart((owner, part) => {
      if (owner === state.worker) mark(pen, part, ink, page, scale);
    });
    drawAxes(pen, plan, state, { ink, muted, page }, isLabelled);
    if (cursor) {
      pen.strokeStyle = theme("focus");
      pen.lineWidth = 2 * scale;
      const [x, y] = [margin + cursor[1] * cell, margin + cursor[0] * cell];
      pen.strokeRect(x - 2 * scale, y - 2 * scale, cell + 3 * scale, cell + 3 * scale);
    }
  };

  // A number on a tile that is computed in part lies on two grounds, so it gets a rim.
  function outlined(pen, page, text, x, y, scale) {
    pen.strokeStyle = page;
    pen.lineWidth = 3 * scale;
    pen.lineJoin = "round";
    pen.strokeText(text, x, y);
  }

  // Dark and light, one inside the other: seen on every colour. The smallest tiles have no room for colour besides.
  function mark(pen, { x, y, width, height }, ink, page, scale) {
    const frame = (inset, line, colour) => {
      pen.fillStyle = colour;
      for (const [dx, dy, w, h] of [
        [inset, inset, width - 2 * inset, line],
        [inset, height - inset - line, width - 2 * inset, line],
        [inset, inset, line, height - 2 * inset],
        [width - inset - line, inset, line, height - 2 * inset],
      ])
        pen.fillRect(x + dx, y + dy, w, h);
    };
    const size = Math.min(width, height);
    const line = size >= 9 * scale ? Math.round(1.5 * scale) : 1;
    if (size >= 3) frame(line, Math.max(1, Math.round(scale / 2)), page);
    frame(0, line, ink);
  }

  function clearHidden(pen, seen, page) {
    const { margin, side } = layout;
    const N = problem.tokens;
    pen.fillStyle = page;
    for (let y = 0; y < side; y++) {
      const i = Math.floor(((y + 0.5) * N) / side);
      const [left, right] = [Math.round((seen.first[i] * side) / N), Math.round((seen.last[i] * side) / N)];
      if (left > 0) pen.fillRect(margin, margin + y, left, 1);
      if (right < side) pen.fillRect(margin + right, margin + y, side - right, 1);
    }
  }

  // Along the top and the left, the groups that the worker holds.
  function drawAxes(pen, plan, state, { ink, muted, page }, isLabelled) {
    const { scale, margin, cell } = layout;
    const held = new Set(plan.quorums.quorum(state.worker));
    pen.font = `${Math.round(Math.min(11 * scale, 0.62 * cell))}px system-ui, sans-serif`;
    for (let g = 0; g < plan.W; g++) {
      const middle = margin + (g + 0.5) * cell;
      const reach = margin - Math.round(3 * scale);
      if (held.has(g)) {
        pen.fillStyle = ink;
        pen.fillRect(margin + g * cell, 0, Math.max(cell - 1, 1), reach);
        pen.fillRect(0, margin + g * cell, reach, Math.max(cell - 1, 1));
      }
      pen.fillStyle = held.has(g) ? page : muted;
      if (isLabelled) {
        pen.fillText(g, middle, reach / 2 + 1);
        pen.fillText(g, reach / 2, middle);
      }
    }
  }

  // What is under a mouse or finger, or null: a tile, and where in it, from 0 on its left to 1 on its right.
  Explorer.placeAt = function (canvas, event, W) {
    const box = canvas.getBoundingClientRect();
    const place = (at, start) => ((at - start) * layout.scale - layout.margin) / layout.cell;
    const across = place(event.clientX, box.left);
    const [g, h] = [Math.floor(place(event.clientY, box.top)), Math.floor(across)];
    return g >= 0 && h >= 0 && g < W && h < W ? { tile: [g, h], across: across - h } : null;
  };

  const SVG = "http://www.w3.org/2000/svg";
  function add(parent, name, attributes, text) {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    parent.append(element);
  }

  Explorer.drawCircle = function (svg, plan, state) {
    const { W, quorums } = plan;
    svg.replaceChildren();
    const held = quorums.quorum(state.worker);
    const place = (g, radius = 100) => {
      const angle = (2 * Math.PI * g) / W;
      return [radius * Math.sin(angle), -radius * Math.cos(angle)];
    };
    const chord = (g, h, kind) => {
      const [[x1, y1], [x2, y2]] = [place(g), place(h)];
      add(svg, "line", { x1, y1, x2, y2, class: kind });
    };
    add(svg, "circle", { r: 100, class: "rim" });
    held.forEach((g, k) => held.slice(k + 1).forEach((h) => chord(g, h, "chord")));
    const isFew = W <= MOST_LABELLED;
    svg.setAttribute("viewBox", isFew ? "-132 -128 264 256" : "-165 -150 330 300");
    for (let g = 0; g < W; g++) {
      const [cx, cy] = place(g);
      if (!held.includes(g)) add(svg, "circle", { cx, cy, r: isFew ? 4 : 1.4, class: "group" });
    }
    if (state.d > 0) {
      const ends = quorums.pairsAt(state.d)[0].map((a) => (a + state.worker) % W);
      chord(...ends, "chosen");
      for (const g of ends) {
        const [cx, cy] = place(g);
        add(svg, "circle", { cx, cy, r: isFew ? 9 : 7, class: "chosen-end" });
      }
    }
    for (const g of held) {
      const [cx, cy] = place(g);
      add(svg, "circle", { cx, cy, r: isFew ? 6 : 4, class: "held" });
    }
    let level = 0;
    let before = -Infinity;
    for (const g of isFew ? Array(W).keys() : held) {
      level = !isFew && g - before < W / 30 ? (level + 1) % 3 : 0; // neighbours' labels step outwards
      before = g;
      const side = Math.sin((2 * Math.PI * g) / W); // numbers beside the circle are wider than high
      const [x, y] = place(g, isFew ? 117 : 111 + level * (11 + 12 * Math.abs(side)));
      const anchor = isFew || Math.abs(side) < 0.3 ? "middle" : side > 0 ? "start" : "end";
      const kind = held.includes(g) ? "label held-label" : "label";
      add(svg, "text", { x, y, class: kind, "text-anchor": anchor, "font-size": isFew ? 11 : 13 }, g);
    }
  };

  Explorer.drawLoads = function (svg, plan, state) {
    const width = svg.clientWidth || 300;
    const height = 110;
    const { W, loads } = plan;
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const most = Math.max(...loads);
    const mean = loads.reduce((sum, load) => sum + load, 0) / W;
    const step = Math.min(width / W, 60);
    const top = (load) => 8 + 84 * (1 - load / most);
    loads.forEach((load, i) => {
      const bar = { x: i * step, y: top(load), width: Math.max(step - (step > 4 ? 1.5 : 0.5), 1), height: 92 - top(load) };
      add(svg, "rect", { ...bar, class: i >= state.done ? "bar waiting" : i === state.worker ? "bar own" : "bar" });
    });
    add(svg, "line", { x1: 0, x2: W * step, y1: top(mean), y2: top(mean), class: "mean" });
    const middle = (state.worker + 0.5) * step;
    add(svg, "path", { d: `M${middle} 95 l6 11 h-12 z`, class: "pointer" });
  };
})();
