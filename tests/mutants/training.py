"""Mutants of the training step, the optimizers, what a run keeps and says, and the tasks' losses."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

STEP, OPTIMIZER, STATE, LOG = (f"training/{name}.py" for name in ("step", "optimizer", "state", "log"))
GUIDANCE, STAGE_A, STAGE_B, BASE, ENCODE = (
    f"training/tasks/{name}.py" for name in ("guidance", "stage_a", "stage_b", "base", "encode")
)
TEST_STEP, TEST_OPTIMIZER, TEST_MUON, TEST_LOG, TEST_TASKS, TEST_LOSSES, TEST_GRADIENTS, TEST_RESUME = (
    f"tests/training/test_{name}.py"
    for name in ("step", "optimizer", "muon", "log", "tasks", "losses", "gradients", "resume")
)
DIFFUSERS = f"{TEST_GRADIENTS}::test_stage_c_against_diffusers"

MUTANTS = (
    Mutant("parts of a batch summed", STEP, "t + g / config.accumulate", "t + g", (TEST_STEP,)),
    Mutant(
        "gradient of the loss's weight", STEP, "jax.lax.stop_gradient(weight) * out.loss", "weight * out.loss",
        equivalent="the weight is made of logSNR and running means, neither of which depends on parameters",
    ),
    Mutant("every step draws the same", STEP, "wrap_key_data(state.key), state.step)", "wrap_key_data(state.key), 0)", (TEST_STEP,)),
    Mutant("samples draw the same", STEP, "jax.random.key_data(jax.random.split(key, size))", "jax.random.key_data(jax.random.split(key, 1)).repeat(size, 0)", (DIFFUSERS,)),
    Mutant("no P2 weight", STEP, 'if diffusion.loss_weight == "p2"', 'if diffusion.loss_weight == "p3"', (DIFFUSERS,)),
    Mutant("adaptive weight of another bucket", STEP, "adaptive_weight(adaptive, out.logsnr)", "adaptive_weight(adaptive, -out.logsnr)", (TEST_STEP,)),
    Mutant("running losses of nothing", STEP, "adaptive_update(adaptive, logsnr, losses)", "adaptive_update(adaptive, logsnr, 0 * losses)", (TEST_STEP,)),
    Mutant("average of the parameters before", STEP, "update_ema(state.ema, params,", "update_ema(state.ema, state.params,", (TEST_STEP,)),
    Mutant("norm of the updates as gradient's", STEP, '"gradient_norm": optax.tree.norm(grads)', '"gradient_norm": optax.tree.norm(updates)', (TEST_STEP,)),
    Mutant("norm of the parameters before", STEP, '"parameter_norm": optax.tree.norm(params)', '"parameter_norm": optax.tree.norm(state.params)', (TEST_STEP,)),
    Mutant("rate of the next step in the log", STEP, "jnp.asarray(rate(state.step)", "jnp.asarray(rate(state.step + 1)", (TEST_STEP,)),
    Mutant("weighted loss in the log", STEP, '"loss": losses.mean()', '"loss": value', (TEST_STEP,)),
    Mutant("objective of the last part", STEP, "value, extra = value.mean(),", "value, extra = value[-1],", (TEST_STEP,)),
    Mutant("bands keep one sample", STEP, "zeros.at[band].add(losses)", "zeros.at[band].set(losses)", (TEST_STEP,)),
    Mutant("band at its edge", STEP, 'logsnr, side="right")', 'logsnr, side="left")', (TEST_STEP,)),
    Mutant("parts are runs of samples", STEP, "jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)", "x.reshape(parts, x.shape[0] // parts, *x.shape[1:])", (TEST_STEP,)),
    Mutant("statistics not kept", STEP, "{**kinds, **out.collections.get(name, {})}", "{**kinds}", (f"{TEST_TASKS}::test_stage_a_learns_to_reconstruct",)),
    Mutant("average fixed at 0.5", OPTIMIZER, "jnp.minimum(decay, (1 + n) / (10 + n))", "jnp.minimum(0.5, 0 * n + 0.5)", (TEST_OPTIMIZER,)),
    Mutant("average without its start", OPTIMIZER, "jnp.minimum(decay, (1 + n) / (10 + n))", "jnp.minimum(decay, 0 * n + decay)", (TEST_OPTIMIZER,)),
    Mutant("AdamW without decay", OPTIMIZER, "algorithm = optax.adamw(rate, *config.betas, eps=config.epsilon, weight_decay=decay)", "algorithm = optax.adamw(rate, *config.betas, eps=config.epsilon, weight_decay=0.0)", (TEST_OPTIMIZER,)),
    Mutant("no clipping", OPTIMIZER, "return optax.chain(optax.clip_by_global_norm(config.clip_norm), algorithm)", "return algorithm", (TEST_OPTIMIZER,)),
    Mutant("clipping by value", OPTIMIZER, "optax.clip_by_global_norm(config.clip_norm)", "optax.clip(config.clip_norm)", (TEST_OPTIMIZER,)),
    Mutant("clipping always", OPTIMIZER, "if not config.clip_norm:", "if config.clip_norm < 0:", (TEST_OPTIMIZER,)),
    Mutant("moments exchanged", OPTIMIZER, "optax.adamw(rate, *config.betas, eps", "optax.adamw(rate, *config.betas[::-1], eps", (TEST_OPTIMIZER,)),
    Mutant("epsilon not passed on", OPTIMIZER, "*config.betas, eps=config.epsilon", "*config.betas, eps=1e-8", (TEST_OPTIMIZER,)),
    Mutant("warm-up from 0", OPTIMIZER, "first = peak / config.warmup_steps", "first = 0.0", (TEST_OPTIMIZER,)),
    Mutant("warm-up a step longer", OPTIMIZER, "max(config.warmup_steps - 1, 1)", "config.warmup_steps", (TEST_OPTIMIZER,)),
    Mutant("schedule ends late", OPTIMIZER, "max(steps - config.warmup_steps, 1)", "steps", (TEST_OPTIMIZER,)),
    Mutant("cosine to 0", OPTIMIZER, "(peak, rest, config.final_fraction)", "(peak, rest)", (TEST_OPTIMIZER,)),
    Mutant("linear to 0", OPTIMIZER, "optax.linear_schedule(peak, final, rest)", "optax.linear_schedule(peak, 0.0, rest)", (TEST_OPTIMIZER,)),
    Mutant("Muon without decay", OPTIMIZER, "optax.add_decayed_weights(decay)", "optax.add_decayed_weights(0.0)", (TEST_MUON,)),
    Mutant("Muon: scale of the shorter side", OPTIMIZER, "math.sqrt(max(shape))", "math.sqrt(min(shape))", (TEST_MUON,)),
    Mutant("Muon takes first and last layers", OPTIMIZER, " and names[-2] not in ENDS", "", (TEST_MUON,)),
    Mutant("Muon: stacks are no matrices", OPTIMIZER, '2 + ("rest" in names)', "2", (TEST_MUON,)),
    Mutant("average starts at 0", STATE, "ema=jax.tree.map(jnp.copy, params)", "ema=jax.tree.map(jnp.zeros_like, params)", (TEST_STEP,)),
    Mutant("the seed draws nothing", STATE, "fold_in(jax.random.key(seed), 1)", "fold_in(jax.random.key(0), 1)", (TEST_STEP,)),
    Mutant("moments on every device", STATE, "lambda x, s: x if _is_masked(x) else s,", "lambda x, s: x if _is_masked(x) else whole,", (f"{TEST_MUON}::test_moments_lie_where_their_parameters_do",)),
    Mutant("mean over the steps of this process", LOG, "float(value) / self._count", "float(value) / self._timed", (TEST_LOG,)),
    Mutant("bands' sums in the log", LOG, "float(losses[i] / counts[i])", "float(losses[i])", (TEST_LOG,)),
    Mutant("sums go on after a line", LOG, "self._sums.clear()", "pass", (TEST_LOG,)),
    Mutant("the last line again", LOG, '["step"] <= start', '["step"] < start', (TEST_LOG,)),
    Mutant("gradients may be infinite", LOG, '("loss", "gradient_norm", "parameter_norm")', '("loss", "parameter_norm")', (f"{TEST_RESUME}::test_what_must_be_finite",)),
    Mutant("images of one process's steps", LOG, "self._timed * self._batch_size / seconds", "self._count * self._batch_size / seconds", (TEST_LOG,)),
    Mutant("damaged bits restored", "training/checkpoints.py", "check_sum(name, value, out[\"data\"])", "pass", (f"{TEST_RESUME}::test_a_damaged_checkpoint_stops",)),
    Mutant("LR map at the HR noise level", GUIDANCE, "noise_level(logsnr_lr, jnp), conditioning)", "noise_level(logsnr, jnp), conditioning)", (TEST_LOSSES,)),
    Mutant("LR map at another t", GUIDANCE, "t = np.float32(guidance.timestep)", "t = np.float32(0.06)", (TEST_LOSSES,)),
    Mutant("LR level without the shift", GUIDANCE, "schedule.logsnr(t, task.diffusion.schedule, task.diffusion.shift)", "schedule.logsnr(t, task.diffusion.schedule)", (TEST_LOSSES,)),
    Mutant(
        "gradient through the LR pass", GUIDANCE, "features = jax.lax.stop_gradient(features)", "pass",
        equivalent="the LR pass is unguided and its weights are frozen: nothing in it depends on parameters",
    ),
    Mutant("HR noise from the LR's stream", GUIDANCE, "normal(keys_of(batch, HR), hr", "normal(keys_of(batch, LR), hr", (TEST_LOSSES,)),
    Mutant("guide weight in training", GUIDANCE, "sizes.scale(height, width), 1.0)", "sizes.scale(height, width), 0.3)", (TEST_LOSSES,)),
    Mutant("scale of the LR map", GUIDANCE, "height, width = hr.shape[1:3]", "height, width = lr.shape[1:3]", (TEST_LOSSES,)),
    Mutant("drawn without the shift", BASE, "schedule.logsnr(t, diffusion.schedule, diffusion.shift, xp=jnp)", "schedule.logsnr(t, diffusion.schedule, 1.0, xp=jnp)", (TEST_LOSSES,)),
    Mutant("image vector of every sample", ENCODE, 'jnp.where(batch["use_image"][:, None], vectors, 0)', "vectors", (TEST_LOSSES,)),
    Mutant("pixels to 256", ENCODE, "astype(jnp.float32) / 255", "astype(jnp.float32) / 256", (TEST_LOSSES,)),
    Mutant("stage B always sees its condition", STAGE_B, ">= task.condition_dropout", ">= 0 * task.condition_dropout", (TEST_LOSSES,)),
    Mutant("stage B: noise of the level's stream", STAGE_B, "logsnr = draw_logsnr(task.diffusion, keys_of(batch, T))", "logsnr = draw_logsnr(task.diffusion, keys_of(batch, DROP))", (TEST_LOSSES,)),
    Mutant("stage B: always one scale", STAGE_B, "jax.lax.switch(which, branches, image)", "jax.lax.switch(0 * which, branches, image)", (TEST_LOSSES,)),
    Mutant("pyramid's variance", STAGE_B, "variance + weight**2", "variance + weight", (f"{TEST_TASKS}::test_pyramid_noise_has_unit_variance_and_strong_low_frequencies",)),
    Mutant("stage A: no gradient past the codebook", STAGE_A, "straight = latent + jax.lax.stop_gradient(quantized - latent)", "straight = quantized", (TEST_LOSSES,)),
    Mutant("stage A: the rest is quantized", STAGE_A, "< task.quantize_probability", ">= task.quantize_probability", (TEST_LOSSES,)),
    Mutant("missing captions", "data/loader.py", "drop < self._config.caption_dropout", "drop > self._config.caption_dropout", ("tests/data/test_loader.py",)),
)
