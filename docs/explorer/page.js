// The page: controls change the state, and every change draws the pictures and writes the words anew.
"use strict";

(function () {
  const { problem, masks } = window.EXPLORER_DATA;
  const { state } = Explorer;
  const at = (id) => document.getElementById(id);
  const count = (n) => n.toLocaleString("en-US");
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  let plan = null;
  let cursor = null; // the tile that is asked about, [query group, key group]
  let timer = null;

  function bytes(n) {
    const units = ["B", "KiB", "MiB", "GiB"];
    let unit = 0;
    for (; n >= 1024 && unit < 3; unit++) n /= 1024;
    return `${n.toFixed(unit ? 1 : 0)} ${units[unit]}`;
  }

  function tilesDone(now) {
    let filled = 0;
    let all = 0;
    for (const parts of plan.parts) {
      all += parts.length > 0;
      filled += parts.length > 0 && parts.every(({ owner }) => owner < now.done);
    }
    return { filled, all };
  }

  // ---- words ----

  function describeWorker({ worker, W }) {
    const held = plan.quorums.quorum(worker);
    const mean = plan.loads.reduce((sum, load) => sum + load, 0) / W;
    const share = (plan.loads[worker] / mean).toFixed(3);
    const shared = plan.shared[worker] > 0 ? `, ${count(plan.shared[worker])} of them in part,` : "";
    return (
      `Worker ${worker} holds ${held.length} of ${W} groups (${held.join(", ")}): ` +
      `${count(plan.heldTokens[worker])} of ${count(problem.tokens)} tokens. ` +
      `It owns ${count(plan.tiles[worker])} tiles${shared} with ${count(plan.loads[worker])} visible pairs, ` +
      `${share} times the mean load. ` +
      `It reads ${bytes(plan.readBytes[worker])} and returns ${bytes(plan.returnedBytes[worker])}.`
    );
  }

  function describeStep(now) {
    const { filled, all } = tilesDone(now);
    const last = now.done > 0 ? `, last that of worker ${now.done - 1}` : "";
    const hidden = all < now.W * now.W ? " with work" : "";
    return `${now.done} of ${now.W} tasks done${last}: ${count(filled)} of ${count(all)} tiles${hidden} filled, none twice.`;
  }

  function describeTile([g, h], now) {
    const tile = g * now.W + h;
    const name = `Query group ${g}, key group ${h}: `;
    const pairs = plan.pairs[tile];
    if (pairs === 0) return `${name}hidden by the mask, so nobody computes it.`;
    const holders = plan.quorums.holders(g, h);
    const others = holders.length > 1 ? `held together by workers ${holders.join(", ")}` : "held together by no other";
    const all = plan.groupSize(g) * plan.groupSize(h);
    const part = pairs === all ? `${count(pairs)} pairs` : `${count(pairs)} of ${count(all)} pairs visible`;
    return `${name}${describeOwners(tile)}, ${others}; ${part}; ${describeProgress(tile, now)}.`;
  }

  function describeOwners(tile) {
    const owners = plan.ownersOf(tile);
    if (owners.length === 1) return `owned by worker ${owners[0]}`;
    const parts = plan.parts[tile].map(({ owner, start, stop }) => `worker ${owner} owns ${start} to ${stop - 1}`);
    return `cut by its keys, of which ${parts.join(", ")}`;
  }

  function describeProgress(tile, now) {
    const owners = plan.ownersOf(tile);
    const done = owners.filter((owner) => owner < now.done).length;
    return done === owners.length ? "computed" : done > 0 ? "computed in part" : "not computed yet";
  }

  function describeDifference({ d, worker, W }) {
    if (d === 0) return "One group has no other to differ from.";
    const [first, ...more] = plan.quorums.pairsAt(d).map(([a, b]) => [(a + worker) % W, (b + worker) % W]);
    const also = more.map(([g, h]) => `${g} and ${h}`).join("; ");
    return (
      `Groups ${first[0]} and ${first[1]} of this worker are ${d} apart: ${first[0]} − ${first[1]} ≡ ${d}` +
      `${2 * d < W ? `, and the other way round ≡ ${W - d}` : ""} (mod ${W}). ` +
      (more.length ? `So are ${also}; the first pair is the one that ownership goes by.` : "No other pair is.")
    );
  }

  function differenceRows({ worker, W }) {
    return Array.from({ length: Math.floor(W / 2) }, (_, k) => {
      const pairs = plan.quorums.pairsAt(k + 1);
      const [a, b] = pairs[0];
      const row = document.createElement("tr");
      const cells = [
        2 * (k + 1) === W ? `${k + 1}` : `${k + 1}, ${W - k - 1}`,
        `${a} − ${b}`,
        `${(a + worker) % W}, ${(b + worker) % W}`,
        pairs.length - 1,
      ];
      cells.forEach((text, column) => {
        const cell = document.createElement(column ? "td" : "th");
        if (!column) cell.scope = "row";
        cell.textContent = text;
        row.append(cell);
      });
      return row;
    });
  }

  function writeSchemes() {
    const { W, schemes } = plan;
    for (const [scheme, figures] of Object.entries(schemes)) {
      const isRing = scheme === "ring";
      at(`${scheme}-tokens`).textContent = count(figures.mostTokens);
      at(`${scheme}-read`).textContent = bytes(figures.read);
      at(`${scheme}-passed`).textContent = isRing ? bytes(figures.passed) : "0 B";
      at(`${scheme}-results`).textContent = bytes(figures.results);
      at(`${scheme}-written`).textContent = bytes(figures.written);
      at(`${scheme}-load`).textContent = `${figures.unevenness.toFixed(3)} ×`;
    }
    at("ring-note").textContent =
      `In the ring a worker keeps ${count(Math.ceil(problem.tokens / W))} tokens at a time, and the keys and values of the ` +
      "others pass by it; so workers have to run together, while tasks of a quorum set or a grid need nobody.";
  }

  // ---- drawing ----

  function draw(now) {
    plan = Explorer.plan(now.W, now.mask);
    if (cursor && Math.max(...cursor) >= now.W) cursor = null;
    const most = Math.max(0, now.W - 1);
    setNumber("W", now.W, 1, 133);
    setNumber("worker", now.worker, 0, most);
    setNumber("d", now.d, Math.min(1, now.d), Math.floor(now.W / 2));
    at("mask").value = now.mask;
    at(`show-${now.show}`).checked = true;
    document.querySelectorAll("[data-w]").forEach((button) => {
      button.setAttribute("aria-pressed", Number(button.dataset.w) === now.W);
    });
    Object.assign(at("done"), { max: now.W, value: now.done });
    at("done").setAttribute("aria-valuetext", describeStep(now));
    for (const [id, isEnd] of [["first", now.done === 0], ["back", now.done === 0]]) setDisabled(at(id), isEnd);
    for (const [id, isEnd] of [["forward", now.done === now.W], ["last", now.done === now.W]]) setDisabled(at(id), isEnd);
    write("step", describeStep(now));
    write("summary", describeWorker(now));
    write("difference", describeDifference(now));
    at("differences").replaceChildren(...differenceRows(now));
    at("base").textContent = `D = {${plan.quorums.base.join(", ")}} modulo ${now.W}`;
    writeSchemes();
    drawPictures(now);
  }

  function drawPictures(now) {
    Explorer.drawMatrix(at("matrix"), plan, now, cursor);
    Explorer.drawCircle(at("circle"), plan, now);
    Explorer.drawLoads(at("loads"), plan, now);
    const held = plan.quorums.quorum(now.worker).join(", ");
    at("matrix").setAttribute("aria-label", `Tile matrix, ${now.W} by ${now.W}, mask ${masks[now.mask].label}`);
    at("circle").setAttribute("aria-label", `Quorum of worker ${now.worker} on the circle of ${now.W} groups: ${held}`);
    const [least, largest] = [Math.min(...plan.loads), Math.max(...plan.loads)];
    const words = `Loads of ${now.W} workers: from ${count(least)} to ${count(largest)} visible pairs`;
    at("loads").setAttribute("aria-label", words);
    at("loads-words").textContent = `${words}; the dashed line is their mean. Outlined bars are still to be done.`;
    write("tile", cursor ? describeTile(cursor, now) : "No tile is chosen: choose one to see who holds it.");
  }

  // Text is set only when it changes, for what is set is read out.
  function write(id, text) {
    if (at(id).textContent !== text) at(id).textContent = text;
  }

  // A disabled button would lose the focus, and with it the keyboard its place.
  function setDisabled(button, isDisabled) {
    button.setAttribute("aria-disabled", isDisabled);
  }

  function setNumber(id, value, min, max) {
    const field = at(id);
    Object.assign(field, { min, max });
    if (document.activeElement !== field || Number(field.value) !== value) field.value = value;
    setDisabled(at(`${id}-less`), value <= min);
    setDisabled(at(`${id}-more`), value >= max);
  }

  // ---- stepping ----

  function stepTo(done) {
    const { W } = state.now();
    const next = Math.min(Math.max(done, 0), W);
    state.change(next > 0 ? { done: next, worker: next - 1 } : { done: 0 });
  }

  function play() {
    if (state.now().done === state.now().W) stepTo(0);
    const { W } = state.now();
    // some ten seconds for any W, but never a flicker; where less motion is asked for, one task a second
    const pause = calm.matches ? 1000 : Math.min(Math.max(10000 / W, 150), 800);
    at("summary").setAttribute("aria-live", "off");
    timer = setInterval(() => {
      stepTo(state.now().done + 1);
      if (state.now().done === state.now().W) stop();
    }, pause);
    showPlaying();
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    at("summary").setAttribute("aria-live", "polite");
    showPlaying();
  }

  function showPlaying() {
    at("play").textContent = timer === null ? "Play" : "Pause";
  }

  const STEPS = {
    first: () => 0,
    back: (now) => now.done - 1,
    forward: (now) => now.done + 1,
    last: (now) => now.W,
  };
  const KEYS = { Home: "first", ArrowLeft: "back", ArrowRight: "forward", End: "last" };

  function step(name) {
    if (timer !== null) stop();
    stepTo(STEPS[name](state.now()));
  }

  // ---- controls ----

  function connectNumber(id) {
    const set = (value) => {
      if (timer !== null && id !== "d") stop();
      state.change({ [id]: value });
    };
    at(id).addEventListener("input", (event) => {
      if (event.target.value !== "") set(Number(event.target.value));
    });
    at(id).addEventListener("change", () => setNumber(id, state.now()[id], at(id).min, at(id).max));
    at(id).addEventListener("blur", () => (at(id).value = state.now()[id]));
    at(`${id}-less`).addEventListener("click", () => set(state.now()[id] - 1));
    at(`${id}-more`).addEventListener("click", () => set(state.now()[id] + 1));
  }

  function connect() {
    ["W", "worker", "d"].forEach(connectNumber);
    for (const [name, { label }] of Object.entries(masks)) at("mask").add(new Option(label, name));
    at("mask").addEventListener("change", (event) => state.change({ mask: event.target.value }));
    for (const show of ["all", "worker"]) at(`show-${show}`).addEventListener("change", () => state.change({ show }));
    document.querySelectorAll("[data-w]").forEach((button) => {
      button.addEventListener("click", () => {
        if (timer !== null) stop();
        state.change({ W: Number(button.dataset.w) });
      });
    });
    Object.keys(STEPS).forEach((name) => at(name).addEventListener("click", () => step(name)));
    at("play").addEventListener("click", () => (timer === null ? play() : stop()));
    at("done").addEventListener("input", (event) => {
      if (timer !== null) stop();
      stepTo(Number(event.target.value));
    });
    document.addEventListener("keydown", (event) => {
      const isTaken = event.target.matches("input, select, canvas, [tabindex]");
      if (isTaken || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey || !(event.key in KEYS)) return;
      event.preventDefault();
      step(KEYS[event.key]);
    });
    connectMatrix(at("matrix"));
  }

  const cursorTile = () => cursor[0] * plan.W + cursor[1];

  function point(tile) {
    cursor = tile;
    drawPictures(state.now());
  }

  function connectMatrix(canvas) {
    canvas.addEventListener("click", (event) => {
      const place = Explorer.placeAt(canvas, event, plan.W);
      if (place === null) return;
      point(place.tile);
      const h = place.tile[1];
      const key = plan.groupStart(h) + place.across * plan.groupSize(h);
      const parts = plan.parts[cursorTile()];
      if (parts.length > 0) state.change({ worker: (parts.find(({ stop }) => key < stop) || parts.at(-1)).owner });
    });
    const chooseOwner = () => {
      if (cursor === null) return;
      const owners = plan.ownersOf(cursorTile()); // where there are several, the one after the chosen worker
      const next = (owners.indexOf(state.now().worker) + 1) % owners.length;
      if (owners.length > 0) state.change({ worker: owners[next] });
    };
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    canvas.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") chooseOwner();
      else if (event.key === "Escape") point(null);
      else if (event.key in moves) {
        const [down, right] = moves[event.key];
        const within = (g) => Math.min(Math.max(g, 0), plan.W - 1);
        point(cursor ? [within(cursor[0] + down), within(cursor[1] + right)] : [0, 0]);
      } else return;
      event.preventDefault();
    });
  }

  // ---- start ----

  connect();
  state.onChange(draw);
  draw(state.now());
  const redraw = () => drawPictures(state.now());
  new ResizeObserver(redraw).observe(at("matrix").parentElement);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  // what the tests read
  window.explorer = Object.freeze({
    state: () => ({ ...state.now(), isPlaying: timer !== null, cursor }),
    figures() {
      const { W, worker } = state.now();
      return {
        parts: plan.parts.map((parts) => parts.map(({ owner, start, stop }) => [start, stop, owner])),
        loads: Array.from(plan.loads),
        tiles: Array.from(plan.tiles),
        quorum: plan.quorums.quorum(worker),
        heldTokens: plan.heldTokens,
        readBytes: plan.readBytes,
        returnedBytes: plan.returnedBytes,
        schemes: plan.schemes,
        pairs: Array.from({ length: Math.floor(W / 2) }, (_, k) => plan.quorums.pairsAt(k + 1)[0]),
        picture: Explorer.picture(),
      };
    },
  });
})();
