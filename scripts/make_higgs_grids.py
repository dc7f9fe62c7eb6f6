#!/usr/bin/env python3
"""Writes src/quant/higgs_grid_tables.cpp: codebooks of the standard normal law (quant/higgs.h).

    make_higgs_grids.py GRIDS.json SEED_OF_D4 > src/quant/higgs_grid_tables.cpp

Dimensions 1 and 2 come from GRIDS.json ({"d1"|"d2": {N: {"points", "mse"}}}): exact Lloyd-Max, and Lloyd on
a quadrature. Dimension 4 with 256 points is computed here: stochastic Lloyd over fresh normal
samples (its fixed points are those of Lloyd, "Least squares quantization in PCM" (1982)), then averaged
Lloyd steps, and measured on other samples. Needs numpy.
"""
import json
import sys

import numpy as np

HEAD = """// Made by scripts/make_higgs_grids.py: codebooks that are optimal for the standard normal law in 1, 2
// and 4 dimensions. mse: expected squared error per coordinate.
#include "quant/higgs_grid_tables.h"

namespace lathe {
"""


def nearest(samples, points):
    """Index of the nearest point of each sample, and the squared distances."""
    half_norm = 0.5 * (points * points).sum(1)
    index = np.empty(len(samples), dtype=np.int64)
    error = 0.0
    for begin in range(0, len(samples), 1 << 15):
        chunk = samples[begin : begin + (1 << 15)]
        score = chunk @ points.T - half_norm
        best = score.argmax(1)
        index[begin : begin + len(chunk)] = best
        error += float((chunk * chunk).sum() - 2 * score[np.arange(len(chunk)), best].sum())
    return index, error / samples.size


def lloyd(dim, num_points, seed):
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((num_points, dim)).astype(np.float32) * np.float32(0.9)
    # Rising sample sizes: early steps need few, the last ones average the noise away.
    for log2_samples, steps in ((15, 80), (17, 80), (19, 60), (21, 25)):
        for _ in range(steps):
            samples = rng.standard_normal((1 << log2_samples, dim)).astype(np.float32)
            index, _ = nearest(samples, points)
            count = np.bincount(index, minlength=num_points)
            sums = np.stack(
                [np.bincount(index, weights=samples[:, j], minlength=num_points) for j in range(dim)], 1
            )
            moved = count > 0
            centroid = np.where(moved[:, None], sums / np.maximum(count, 1)[:, None], points)
            step = 0.5 if log2_samples == 21 else 1.0
            points = (points + step * (centroid - points)).astype(np.float32)
            empty = np.flatnonzero(~moved)
            if len(empty):  # a point without a cell starts again beside the fullest one
                points[empty] = points[count.argmax()] + rng.normal(0, 0.05, (len(empty), dim))
    order = np.argsort((points * points).sum(1), kind="stable")
    points = points[order]
    check = np.random.default_rng(seed + 1000).standard_normal((1 << 22, dim)).astype(np.float32)
    return points, nearest(check, points)[1]


def emit(dim, points, mse):
    points = np.asarray(points, dtype=np.float64).reshape(len(points), dim)
    name = f"kHiggsGridD{dim}N{len(points)}"
    print(f"\n// mse {mse:.6f}")
    print(f"const float {name}[{len(points) * dim}] = {{")
    numbers = [f"{value:.9g}" for value in points.ravel()]
    numbers = [n + ("f" if "." in n or "e" in n else ".0f") for n in numbers]
    line = "   "
    for number in numbers:
        if len(line) + len(number) + 2 > 100:
            print(line)
            line = "   "
        line += f" {number},"
    print(line)
    print("};")


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        grids = json.load(file)
    print(HEAD, end="")
    for dim, sizes in ((1, (4, 8, 16)), (2, (16, 64, 256))):
        for size in sizes:
            grid = grids[f"d{dim}"][str(size)]
            emit(dim, grid["points"], grid["mse"])
    points, mse = lloyd(4, 256, int(sys.argv[2]))
    emit(4, points, mse)
    print("\n}  // namespace lathe")


if __name__ == "__main__":
    main()
