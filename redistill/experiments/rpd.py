"""RPD against PPO at equal actions, dense and sparse reward (specification: "Working here means")."""

from redistill.experiments.base import Arm, Experiment

TASK = "button-press-topdown-v3:cap=150"
TEACHER, SHIFTED = "expert:noise=1.5", "expert:noise=1.5,shift=0.03"
SPARSE = {"task": f"{TASK},reward=sparse"}

RPD_BUTTON = Experiment(
    slug="rpd",
    claim="at equal actions in the simulator RPD (mse, weight 1) succeeds more often than PPO on Meta-World's button-press-topdown with dense reward",
    metric="success",
    base={
        "task": TASK, "model": "mlp:scale=5", "steps": 24, "prompts_per_step": 16, "simulators": 16, "epochs": 4, "minibatches": 16,
        "gamma": 0.99, "learning_rate": 1e-3, "eval_prompts": 25, "eval_every": 6, "save_every": 100000, "save_model": "false",
    },
    arms={
        "ppo": Arm("ppo"),
        "ppo at 3e-4": Arm("ppo", {"learning_rate": 3e-4}),
        "rpd": Arm("rpd", {"teacher": TEACHER}),
        "rpd annealed": Arm("rpd", {"teacher": TEACHER, "anneal_steps": 57600}),
        "rpd shifted": Arm("rpd", {"teacher": SHIFTED}),
        "ppo sparse": Arm("ppo", SPARSE),
        "rpd sparse": Arm("rpd", {**SPARSE, "teacher": TEACHER}),
    },
    compare=("rpd", "ppo"),
    controls={
        "against PPO at the paper's learning rate": ("rpd", "ppo at 3e-4"),
        "sparse reward": ("rpd sparse", "ppo sparse"),
        "the student against its teacher": ("rpd", "rpd:teacher_success"),
        "the same with sparse reward": ("rpd sparse", "rpd sparse:teacher_success"),
        "the same where the teacher sees the button 3 cm off": ("rpd shifted", "rpd shifted:teacher_success"),
        "with that teacher against PPO": ("rpd shifted", "ppo"),
        "weight annealed over all actions against constant": ("rpd annealed", "rpd"),
        "actions until half succeed: PPO more than RPD": ("ppo:steps_to_half", "rpd:steps_to_half"),
    },
    grid={},
    budget="57,600 actions (24 updates of 16 episodes of 150) for each arm",
    quick={"steps": 1, "prompts_per_step": 4, "minibatches": 4, "eval_prompts": 4, "eval_every": 0},
)  # fmt: skip
