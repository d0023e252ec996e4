// What the page shows, as a few values that are always in range and stand in the address, so that a view can be linked.
"use strict";
window.Explorer = window.Explorer || {};

(function () {
  const { masks, workers } = window.EXPLORER_DATA;
  const START = { W: 31, mask: "full", worker: 0, done: 31, show: "all", d: 1 };
  const clamp = (value, least, most, otherwise) =>
    Number.isFinite(value) ? Math.min(Math.max(Math.round(value), least), most) : otherwise;

  // Return a state in range; W comes first, as the ranges of the others follow from it.
  function settled(wanted) {
    const W = clamp(wanted.W, 1, workers.length, START.W);
    return {
      W,
      mask: Object.hasOwn(masks, wanted.mask) ? wanted.mask : START.mask,
      worker: clamp(wanted.worker, 0, W - 1, 0),
      done: clamp(wanted.done, 0, W, W),
      show: wanted.show === "worker" ? "worker" : "all",
      d: W === 1 ? 0 : clamp(wanted.d, 1, Math.floor(W / 2), 1),
    };
  }

  function fromAddress() {
    const found = new URLSearchParams(location.hash.slice(1));
    const number = (name) => (found.get(name) ? Number(found.get(name)) : NaN);
    return settled({
      W: number("W"),
      mask: found.get("mask"),
      worker: number("worker"),
      done: number("done"),
      show: found.get("show"),
      d: number("d"),
    });
  }

  let state = fromAddress();
  let wanted = { ...state }; // out of range for a while: typing 31 passes by 3, and must not lose worker 20
  const listeners = [];

  Explorer.state = {
    now: () => state,
    // Another number of workers is another plan: all of it is shown done, until one steps.
    change(values) {
      const before = state;
      if ("W" in values && values.W !== before.W) wanted.done = NaN;
      state = settled({ ...wanted, ...values });
      for (const name of Object.keys(values)) wanted[name] = state[name];
      if (Object.keys(state).every((name) => state[name] === before[name])) return;
      history.replaceState(null, "", `#${new URLSearchParams(state)}`);
      listeners.forEach((listener) => listener(state));
    },
    onChange: (listener) => listeners.push(listener),
  };

  window.addEventListener("hashchange", () => {
    state = fromAddress();
    wanted = { ...state };
    listeners.forEach((listener) => listener(state));
  });
})();
