// How fast each pair of a head turns: to the bit what src/trilobit/model/rope.py computes.

const SERIES = [0.00136324647, 0.00836596917, 0.0416710824, 0.166665524, 0.499999851];
const LN2_HIGH = 0.693145751953125, LN2_LOW = Math.fround(1.428606765330187045e-6);
const single = Math.fround;

export function frequencies(headDim, theta) {
  const log = Math.log(single(theta)), inverse = single(1 / Math.LN2);
  return Float32Array.from({ length: headDim / 2 }, (_, i) => {
    const power = log * single((2 * i) / headDim);
    const twos = Math.round(single(single(power) * inverse));
    const rest = power - twos * LN2_HIGH - single(twos * LN2_LOW);
    const x = single(rest);
    const series = SERIES.map(single).reduce((sum, term) => single(sum * x + term));
    return 1 / (single(1 + (rest + rest * rest * series)) * 2 ** twos);
  });
}
