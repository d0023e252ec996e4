// Cyclic quorum sets, as cqs.CyclicQuorumSet: who holds which groups, and who owns which tile by the closed form.
"use strict";
window.Explorer = window.Explorer || {};

Explorer.modulo = (a, W) => ((a % W) + W) % W;

Explorer.quorumSet = function (W, base) {
  const modulo = (a) => Explorer.modulo(a, W);
  const elements = new Set(base);
  const reached = Array.from({ length: W }, () => []); // reached[d]: every (a, b) with a - b = d, in the library's order
  for (const a of base) for (const b of base) reached[modulo(a - b)].push([a, b]);
  const chosen = (d) => reached[d][0];

  function diagonalOwner(g) {
    if (W % 2 === 1) return modulo(g - base[0]);
    const [a, b] = chosen(W / 2);
    const i = modulo(g - a);
    return (2 * i < W ? i : modulo(g - b)) + W / 2;
  }

  const isListed = (pairs, before, [a, b]) => pairs.slice(0, before).some(([c, d]) => c === a && d === b);

  return {
    W,
    base,
    // The pairs of elements that differ by d, each once: at W/2 either order of a pair does.
    pairsAt: (d) => reached[d].filter(([a, b], k) => 2 * d !== W || !isListed(reached[d], k, [b, a])),
    quorum: (i) => base.map((a) => modulo(a + i)).sort((a, b) => a - b),
    holders: (g, h) =>
      base
        .filter((a) => elements.has(modulo(h - g + a)))
        .map((a) => modulo(g - a))
        .sort((a, b) => a - b),
    owner(g, h) {
      let d = modulo(g - h);
      if (d === 0) return diagonalOwner(g);
      if (2 * d > W) [g, h, d] = [h, g, W - d]; // a pair is listed under the smaller of its two differences
      const [a] = chosen(d);
      const i = modulo(g - a);
      return 2 * d === W && 2 * i >= W ? modulo(h - a) : i;
    },
  };
};
