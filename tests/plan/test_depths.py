import dataclasses
import functools

import plan_tiny

from mmjax.core.config import leaves
from mmjax.plan.depths import cut, plainest, stack_depths, stacks, whole

experiment = functools.partial(plan_tiny.experiment, image_depth=3)


def depths(made):
    return {path: stack.depth for path, stack in stacks(made.model).items()}


def test_every_stack_is_found_by_its_path():
    assert depths(experiment()) == {"encoders.image": 3, "encoders.text": 2}
    assert stack_depths(experiment().model) == (2, 3)
    assert stack_depths(experiment(image_depth=0, text_depth=4).model) == (4,)


def test_stacks_are_cut_to_one_layer_and_those_of_one_depth_to_two():
    assert depths(cut(experiment())) == {"encoders.image": 1, "encoders.text": 1}
    assert depths(cut(experiment(), 3)) == {"encoders.image": 2, "encoders.text": 1}
    assert depths(cut(experiment(image_depth=0), 2)) == {"encoders.image": 0, "encoders.text": 2}
    assert all(stack.unroll for stack in stacks(cut(experiment()).model).values())


def test_cutting_changes_nothing_else():
    before, after = leaves(experiment()), leaves(cut(experiment(), 3))
    changed = {path.rpartition(".")[2] for path in before if before[path] != after[path]}
    assert changed == {"depth", "unroll"}


def test_the_whole_is_linear_in_each_depth():
    fixed, per = 100.0, {2: 7.0, 5: 11.0}

    def cost(**layers):
        return {"read": fixed + layers["two"] * per[2] + layers["five"] * per[5]}

    one, twos = cost(two=1, five=1), [cost(two=2, five=1), cost(two=1, five=2)]
    assert whole(one, twos, (2, 5)) == cost(two=2, five=5)


def test_what_only_deeper_programs_have_starts_from_nothing():
    assert whole({"a": 1.0}, [{"a": 1.0, "b": 2.0}], (4,)) == {"a": 1.0, "b": 6.0}
    assert whole({"a": 5.0}, [{"a": 1.0}], (4,)) == {"a": 0.0}


def test_the_plainest_experiment_recomputes_nothing():
    fast = experiment()
    objective = dataclasses.replace(fast.tasks["contrastive"].objective, exchange="ring")
    fast = dataclasses.replace(fast, tasks={"contrastive": dataclasses.replace(fast.tasks["contrastive"], objective=objective)})
    plain = plainest(fast)
    assert plain.tasks["contrastive"].objective.exchange == "plain"
    assert {(s.attention, s.remat) for s in stacks(plain.model).values()} == {("plain", "none")}
