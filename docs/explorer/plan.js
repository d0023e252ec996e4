// What each worker computes, reads and returns, as cqs.Plan: masks, tiles, their parts and owners, loads, traffic.
"use strict";
window.Explorer = window.Explorer || {};

(function () {
  const { problem, masks, workers } = window.EXPLORER_DATA;
  const N = problem.tokens;
  const ACCUMULATOR_BYTES = 4; // partial results of float16 are float32
  const keyBytes = 2 * problem.heads * problem.width * problem.itemBytes; // of a token, with its value
  const queryBytes = problem.heads * problem.width * problem.itemBytes;
  const resultBytes = problem.heads * (problem.width + 2) * ACCUMULATOR_BYTES; // output, log-sum-exp and its rest

  const cut = (n, parts, index) => Math.floor((index * n) / parts); // where part `index` begins
  const overlap = (a, b, c, d) => Math.max(0, Math.min(b, d) - Math.max(a, c));

  // The keys that each query sees: with these masks one range, [first[i], last[i]).
  function visibleKeys(mask) {
    const first = new Int32Array(N);
    const last = new Int32Array(N).fill(N);
    let start = 0;
    for (const length of mask.documents || [N]) {
      first.fill(start, start, start + length);
      last.fill(start + length, start, start + length);
      start += length;
    }
    for (let i = 0; i < N; i++) {
      if (mask.causal) last[i] = Math.min(last[i], i + 1);
      if (mask.left !== undefined) first[i] = Math.max(first[i], i - mask.left);
    }
    return { first, last };
  }

  function visiblePairs(rows, cols, seen) {
    let pairs = 0;
    for (let i = rows[0]; i < rows[1]; i++) pairs += overlap(seen.first[i], seen.last[i], cols[0], cols[1]);
    return pairs;
  }

  function tilePairs(W, seen) {
    const pairs = new Float64Array(W * W);
    for (let g = 0; g < W; g++)
      for (let i = cut(N, W, g); i < cut(N, W, g + 1); i++)
        for (let h = Math.floor((seen.first[i] * W) / N); h < W && cut(N, W, h) < seen.last[i]; h++)
          pairs[g * W + h] += overlap(seen.first[i], seen.last[i], cut(N, W, h), cut(N, W, h + 1));
    return pairs;
  }

  function tileOwners(quorums, pairs, choices) {
    const W = quorums.W;
    const owners = new Int16Array(W * W).fill(-1);
    let next = 0;
    for (let tile = 0; tile < W * W; tile++) {
      if (pairs[tile] === 0) continue;
      const [g, h] = [Math.floor(tile / W), tile % W];
      owners[tile] = quorums.owner(g, h);
      if (choices === undefined) continue;
      const holders = quorums.holders(g, h);
      const choice = holders.length > 1 ? choices[next++] : ".";
      if (choice !== ".") owners[tile] = holders[choice.charCodeAt(0) - "a".charCodeAt(0)];
    }
    return owners;
  }

  // Who computes which keys of each tile: [{ owner, start, stop }], in the order of keys; none where all is hidden.
  function tileParts(quorums, owners, cuts) {
    const { W } = quorums;
    const parts = Array.from(owners, (owner, tile) =>
      owner < 0 ? [] : [{ owner, start: cut(N, W, tile % W), stop: cut(N, W, (tile % W) + 1) }]
    );
    let tile = 0;
    for (const [, ahead, runs] of cuts.matchAll(/(\d+)([a-z_]\S*)/g)) {
      tile += Number(ahead);
      parts[tile] = cutTile(quorums, Math.floor(tile / W), tile % W, runs);
    }
    return parts;
  }

  // The parts of a tile that is cut, from what export.py writes of them, as "a120b": holder a up to key 120, then b.
  function cutTile({ W, holders }, g, h, runs) {
    const first = cut(N, W, h);
    const parts = [];
    let start = first;
    for (const [, letter, place] of runs.matchAll(/([a-z_])(\d*)/g)) {
      const stop = place === "" ? cut(N, W, h + 1) : first + Number(place);
      if (letter !== "_") parts.push({ owner: holders(g, h)[letter.charCodeAt(0) - "a".charCodeAt(0)], start, stop });
      start = stop;
    }
    return parts;
  }

  const ownersOf = (parts) => [...new Set(parts.map((part) => part.owner))];

  // A task: rectangles of queries and keys -> distinct tokens of each, and pairs. `rows` and `cols` are [start, stop).
  const size = (ranges) => ranges.reduce((sum, [start, stop]) => sum + stop - start, 0);

  // Ranges that have no token in common, from such as may have.
  function disjoint(ranges) {
    const found = [];
    let end = 0;
    for (const [start, stop] of [...ranges].sort((a, b) => a[0] - b[0])) {
      if (stop > end) found.push([Math.max(start, end), stop]);
      end = Math.max(end, stop);
    }
    return found;
  }

  function quorumTasks(W, parts, pairs, seen) {
    const tasks = Array.from({ length: W }, () => ({ rows: [], cols: [], load: 0, passed: 0, tiles: 0, shared: 0 }));
    parts.forEach((own, tile) => {
      const g = Math.floor(tile / W);
      const rows = [cut(N, W, g), cut(N, W, g + 1)];
      const owners = ownersOf(own);
      for (const owner of owners) {
        tasks[owner].rows.push(rows);
        tasks[owner].tiles += 1;
        tasks[owner].shared += owners.length > 1;
      }
      for (const { owner, start, stop } of own) {
        tasks[owner].cols.push([start, stop]);
        tasks[owner].load += own.length > 1 ? visiblePairs(rows, [start, stop], seen) : pairs[tile];
      }
    });
    return tasks.map((task) => ({ ...task, rows: disjoint(task.rows), cols: disjoint(task.cols) }));
  }

  // A rectangle, less the keys that none of its queries sees; these masks leave one range of keys.
  function rectangle(rows, cols, seen) {
    const load = visiblePairs(rows, cols, seen);
    if (load === 0) return { rows: [], cols: [], load, passed: 0 };
    const keys = [Math.max(cols[0], seen.first[rows[0]]), Math.min(cols[1], seen.last[rows[1] - 1])];
    return { rows: [rows], cols: [keys], load, passed: 0 };
  }

  function gridTasks(W, seen) {
    const R = Math.min(Math.max(Math.round(Math.sqrt(W)), 1), W);
    return Array.from({ length: W }, (_, i) => {
      const row = Math.floor(((i + 1) * R - 1) / W);
      const [first, last] = [cut(W, R, row), cut(W, R, row + 1)];
      const cols = [cut(N, last - first, i - first), cut(N, last - first, i - first + 1)];
      return rectangle([cut(N, W, first), cut(N, W, last)], cols, seen);
    });
  }

  function ringTasks(W, seen) {
    return Array.from({ length: W }, (_, i) => {
      const rows = [cut(N, W, i), cut(N, W, i + 1)];
      const task = rectangle(rows, [0, N], seen);
      task.passed = size(task.cols) - size(task.cols.map(([a, b]) => [Math.max(a, rows[0]), Math.min(b, rows[1])]));
      return task;
    });
  }

  function figures(tasks) {
    const sum = (of) => tasks.reduce((total, task) => total + of(task), 0);
    const queries = sum((task) => size(task.rows));
    const largest = Math.max(...tasks.map((task) => task.load));
    return {
      mostTokens: Math.max(...tasks.map((task) => size(disjoint([...task.rows, ...task.cols])))),
      read: queries * queryBytes + sum((task) => size(task.cols)) * keyBytes,
      passed: sum((task) => task.passed) * keyBytes,
      results: queries * resultBytes,
      written: N * queryBytes,
      unevenness: (largest * tasks.length) / sum((task) => task.load),
    };
  }

  const known = new Map(); // the page comes back to the same plan with every step
  Explorer.plan = function (W, maskName) {
    const name = `${W} ${maskName}`;
    if (!known.has(name)) known.set(name, makePlan(W, maskName));
    return known.get(name);
  };

  function makePlan(W, maskName) {
    const { base, choices, cuts } = workers[W - 1];
    const quorums = Explorer.quorumSet(W, base);
    const seen = visibleKeys(masks[maskName]);
    const pairs = tilePairs(W, seen);
    const owners = tileOwners(quorums, pairs, choices[maskName]);
    const parts = tileParts(quorums, owners, cuts[maskName] || "");
    const tasks = quorumTasks(W, parts, pairs, seen);
    return {
      W,
      quorums,
      seen,
      pairs,
      parts,
      ownersOf: (tile) => ownersOf(parts[tile]),
      tiles: tasks.map((task) => task.tiles),
      shared: tasks.map((task) => task.shared),
      loads: tasks.map((task) => task.load),
      groupStart: (g) => cut(N, W, g),
      groupSize: (g) => cut(N, W, g + 1) - cut(N, W, g),
      heldTokens: tasks.map((_, i) => size(quorums.quorum(i).map((g) => [cut(N, W, g), cut(N, W, g + 1)]))),
      readBytes: tasks.map((task) => size(task.rows) * queryBytes + size(task.cols) * keyBytes),
      returnedBytes: tasks.map((task) => size(task.rows) * resultBytes),
      schemes: {
        cqs: figures(tasks),
        tiles: figures(gridTasks(W, seen)),
        ring: figures(ringTasks(W, seen)),
      },
    };
  }
})();
