"""Solves the solver's instances as linear programs: python3 lp_bound.py INSTANCES.json OPTIMA.json

Reads a list of instances, writes a list of optima: the least time of a step in all layers when
neurons may be split. Needs `pip install highspy`; exits with 77 without it.

    minimise   sum over layers of t[l]
    t[l]   >=  cold_fixed + cold_per_byte * factor[m] * (cold reads of node m), for every node m
    t[l]   >=  hot_fixed + hot_per_byte * (hot reads)
    budget >=  bundle_bytes * (hot neurons), 0 <= hot[l, n] <= 1
"""

import json
import sys

try:
    import highspy
except ImportError:
    sys.exit(77)


def optimum(instance):
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    infinity = highspy.kHighsInf
    costs = instance["costs"]
    first = []  # of a layer's neurons; its time comes before them
    columns = 0
    for reads in instance["reads"]:
        solver.addVar(0.0, infinity)
        solver.changeColCost(columns, 1.0)
        first.append(columns + 1)
        for _ in reads:
            solver.addVar(0.0, 1.0)
        columns += 1 + len(reads)
    for start, reads in zip(first, instance["reads"]):
        begin = 0
        for share_end, factor in instance["nodes"]:
            end = len(reads) if share_end == 1 else int(share_end * len(reads))
            price = costs["cold_per_byte"] * factor
            ids = range(begin, end)
            solver.addRow(
                costs["cold_fixed"] + price * sum(reads[n] for n in ids), infinity,
                1 + len(ids), [start - 1] + [start + n for n in ids],
                [1.0] + [price * reads[n] for n in ids])
            begin = end
        solver.addRow(
            costs["hot_fixed"], infinity, 1 + len(reads),
            [start - 1] + [start + n for n in range(len(reads))],
            [1.0] + [-costs["hot_per_byte"] * value for value in reads])
    neurons = [start + n for start, reads in zip(first, instance["reads"])
               for n in range(len(reads))]
    solver.addRow(-infinity, instance["budget_bytes"], len(neurons), neurons,
                  [float(instance["bundle_bytes"])] * len(neurons))
    solver.run()
    assert solver.getModelStatus() == highspy.HighsModelStatus.kOptimal, solver.getModelStatus()
    return solver.getObjectiveValue()


with open(sys.argv[1]) as file:
    instances = json.load(file)
with open(sys.argv[2], "w") as file:  # HiGHS prints its banner to stdout
    json.dump([optimum(instance) for instance in instances], file)
