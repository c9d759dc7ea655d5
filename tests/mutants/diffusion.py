"""Mutants of schedules, losses, samplers and classifier-free guidance."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

SCHEDULE, LOSS, SAMPLER, BRANCHES = (
    f"diffusion/{name}.py" for name in ("schedule", "loss", "sampler", "two_branch")
)
TEST_SCHEDULE, TEST_LOSS, TEST_SAMPLER, TEST_BRANCHES = (
    f"tests/diffusion/test_{name}.py" for name in ("schedule", "loss", "sampler", "two_branch")
)

MUTANTS = (
    Mutant("cosine offset", SCHEDULE, "COSINE_S = 0.008", "COSINE_S = 0.0081", (TEST_SCHEDULE,)),
    Mutant("lower clamp", SCHEDULE, "VAR_MAX = 1e-4, 1 -", "VAR_MAX = 1.1e-4, 1 -", (TEST_SCHEDULE,)),
    Mutant("upper clamp", SCHEDULE, "1 - 1e-4\n", "1 - 1.1e-4\n", (TEST_SCHEDULE,)),
    Mutant("shift inverted", SCHEDULE, "xp.log(1 / xp", "xp.log(xp", (TEST_SCHEDULE,)),
    Mutant("shift not clipped", SCHEDULE, ", ends[0], ends[1])", ", -1e9, 1e9)", (TEST_SCHEDULE,)),
    Mutant(
        "noise level without the schedule's factor",
        SCHEDULE,
        "var * np.float32(factor)",
        "var",
        (TEST_SCHEDULE,),
    ),
    Mutant("range of EDM's schedule", SCHEDULE, "80 ** (1 / 7)", "81 ** (1 / 7)", (TEST_SCHEDULE,)),
    Mutant("betas of Stable Diffusion", SCHEDULE, "sqrt(0.00085)", "sqrt(0.0009)", (TEST_SCHEDULE,)),
    Mutant("smallest t", LOSS, "1 - uniform + 0.001, 0.001", "1 - uniform, 0.0", (TEST_LOSS,)),
    Mutant("P2 of the inverse SNR", LOSS, "jnp.exp(logsnr))", "jnp.exp(-logsnr))", (TEST_LOSS,)),
    Mutant("number of edges", LOSS, "len(state.losses) - 1)", "len(state.losses))", (TEST_LOSS,)),
    Mutant("bucket at its edge", LOSS, 'side="left"', 'side="right"', (TEST_LOSS,)),
    Mutant("momentum of buckets", LOSS, "MOMENTUM = 0.99", "MOMENTUM = 0.98", (TEST_LOSS,)),
    Mutant(
        "one bucket's samples summed",
        LOSS,
        "loss) / jnp.maximum(hits, 1)",
        "loss)",
        (f"{TEST_LOSS}::test_fewer_buckets_share_their_means",),
    ),
    Mutant("largest weight", LOSS, "(1e-7, 1e7)", "(1e-7, 1e6)", (TEST_LOSS,)),
    Mutant(
        "eta without effect",
        SAMPLER,
        "eta = np.float32(config.effective_eta)",
        "eta = np.float32(1)",
        (TEST_SAMPLER,),
    ),
    Mutant("noise of DDPM", SAMPLER, "b1**2 / b0**2", "b1 / b0", (TEST_SAMPLER,)),
    Mutant("noise on top", SAMPLER, "b1**2 - sigma**2", "b1**2", (TEST_SAMPLER,)),
    Mutant(
        "guided from the conditional half",
        SAMPLER,
        "guided = unconditional + cfg",
        "guided = conditional + cfg",
        (TEST_SAMPLER,),
    ),
    Mutant(
        "rescaling's share inverted",
        SAMPLER,
        "rescale * rescaled + (1 - rescale) * guided",
        "(1 - rescale) * rescaled + rescale * guided",
        (TEST_SAMPLER,),
    ),
    Mutant("deviation over the batch", SAMPLER, "axis=(1, 2, 3), ddof", "axis=None, ddof", (TEST_SAMPLER,)),
    Mutant(
        "deviation without Bessel's correction",
        SAMPLER,
        "ddof=1",
        "ddof=0",
        equivalent="a ratio of two deviations over as many values: the correction cancels, but for the 1e-9",
    ),
    Mutant("momentum of another ratio", SAMPLER, "2 * before", "before", (TEST_SAMPLER,)),
    Mutant(
        "momentum in the last step",
        SAMPLER,
        "h[:-2], slice(1, -1)",
        "h[:-1], slice(1, None)",
        (TEST_SAMPLER,),
    ),
    Mutant(
        "x₀ of two steps before", SAMPLER, "(x0 - before), x0)", "(x0 - before), before)", (TEST_SAMPLER,)
    ),
    Mutant("guided from the start", SAMPLER, "(False, True, False)", "(True, True, False)", (TEST_SAMPLER,)),
    Mutant("guidance from t = 0", SAMPLER, "start)[:-1] -", "start)[1:] -", (TEST_SAMPLER,)),
    Mutant("passes share their noise", SAMPLER, "fold_in(k, stream)", "fold_in(k, 0)", (TEST_SAMPLER,)),
    Mutant("seeds of 64 bits cut", SAMPLER, "(int(s) >> 32) & 0xFFFFFFFF", "0", (TEST_SAMPLER,)),
    Mutant(
        "every step's noise the same",
        SAMPLER,
        "of_data(key), index)",
        "of_data(key), 1)",
        (TEST_SAMPLER,),
    ),
    Mutant(
        "first step adds the initial noise",
        SAMPLER,
        "noise(keys, 0, shape)",
        "noise(keys, 1, shape)",
        (TEST_SAMPLER,),
    ),
    Mutant("noise level of the next step", SAMPLER, "r=padded(r[:-1])", "r=padded(r[1:])", (TEST_SAMPLER,)),
    Mutant(
        "weights of the down places",
        BRANCHES,
        'place.startswith("up")',
        'place.startswith("down")',
        ("tests/models/test_stage_c.py::test_guide_weights_on_both_sides_of_72_and_96_squared",),
    ),
    Mutant(
        "captured from the unconditional half",
        BRANCHES,
        "out.features[place][:b].astype",
        "out.features[place][-b:].astype",
        (f"{TEST_BRANCHES}::test_recording",),
    ),
    Mutant(
        "captured at another step",
        BRANCHES,
        "i == capture",
        "i == capture - 1",
        (f"{TEST_BRANCHES}::test_recording",),
    ),
    Mutant(
        "HR pass with the LR pass's weight",
        BRANCHES,
        "    if prepared:\n",
        "    if False:\n",
        (f"{TEST_BRANCHES}::test_the_hr_pass_has_its_own_weight",),
    ),
    Mutant(
        "synchronized: guidance of the first step",
        BRANCHES,
        "of_lr, i, i, i + 1",
        "of_lr, 0, i, i + 1",
        (f"{TEST_BRANCHES}::test_whole_sampler_and_the_synchronized_one",),
    ),
)
