from ml_collections import ConfigDict

from affect_jax.train.plan import Plan, plan_steps


def planned(num_examples=100, **fields) -> Plan:
    config = {"batch_size": 10, "total_epochs": 2.0, "eval_every_epochs": 1.0, "log_every_steps": 8}
    return plan_steps(ConfigDict({**config, "optim": {"freeze_epochs": 0.0}, **fields}), num_examples)


def test_plan_has_the_steps_of_evaluations_and_log_lines_and_the_last():
    assert planned() == Plan(10.0, 20, {10, 20}, 20, [8, 10, 16, 20])


def test_last_step_is_evaluated_although_no_evaluation_falls_on_it():
    assert planned(eval_every_epochs=0.75).eval_steps == {8, 15, 20}
    assert planned(eval_every_epochs=5.0).eval_steps == {20}


def test_frozen_parameters_are_thawed_at_a_boundary_but_not_after_the_end():
    plan = planned(optim={"freeze_epochs": 0.5})
    assert plan.thaw_step == 5 and plan.boundaries == [5, 8, 10, 16, 20]
    assert planned(optim={"freeze_epochs": 9.0}).thaw_step == 20
