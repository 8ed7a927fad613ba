# %% [markdown]
# # What a study costs
#
# **Question.** How does the time that a study takes grow with its images, architectures, methods
# and seeds, and what would the study on CelebA itself take?
#
# A study is a list of runs, known before the first of them is computed. Each passes so many images
# through a network, so many times: the cost is a sum, and this chapter says what its terms are,
# measures whether they add up, and evaluates it for studies that nobody has to start to know.

# %% tags=["parameters", "remove-cell"]
params_file = "../params/smoke.yaml"
overrides = {}

# %% tags=["remove-cell"]
from fairq_utils.report import cost
from fairq_utils.report.chapter import open_chapter
from fairq_utils.study import cost as model
from fairq_utils.study import recorded

open_chapter(params_file, overrides)
measured = recorded.read_benchmark("cost")
studies = cost.planned()
cost.glue_growth(measured)
cost.glue_cost(studies)

# %% [markdown]
# ## The sum
#
# For a run $r$ of architecture $a$,
#
# $$
# t_r = \frac{E\,N_{\text{train}}}{v^{\text{train}}_a}
#     + \frac{E'\,N'_{\text{train}}}{v^{\text{tune}}_a}
#     + \frac{N_{\text{test}}}{v^{\text{predict}}_a}
#     + \frac{N_{\text{calibration}}}{v^{\text{watch}}_a}
#     + \frac{L_r}{v^{\text{look}}_a}
#     + \frac{B\,I}{v^{\text{learn}}_a}
#     + c_a ,
# $$
#
# with the epochs $E$ of FP32 training and $E'$ of fine-tuning, numbers of images $N$, images $L_r$
# that a method looks at while it chooses ranges, layers or bits, $I$ iterations on batches of $B$
# where roundings are learnt, rates $v$ in images per second, and seconds $c_a$ that a quantized run
# takes whatever the images. A term is there for the runs that do it. Runs that share a calibration
# share its term. So the cost is linear in the images of each split, and in the numbers of seeds and
# of calibration draws; architectures and methods add, each with its own rates and terms.
#
# ## Is it so?
#
# `make bench-cost` computes a small study ({glue:text}`pixels:.0f` pixels,
# {glue:text}`architectures_measured:s`, one thread of an {glue:text}`processor:s`) at three sizes,
# each from nothing but its images. Dots are seconds of the processor; lines are the sum above, with
# rates that were fitted to the smallest size alone.

# %% mystnb={"image": {"alt": "Seconds over images by kind of run: dots measured, lines predicted"}}
cost.growth_figure(measured)

# %%
cost.sizes_table(measured)

# %% [markdown]
# At the larger sizes the model is off by at most {glue:text}`miss_most:.0f` % for a whole study,
# and by at most {glue:text}`worst_miss:.0f` % for one kind of run ({glue:text}`worst_case:s`).
#
# **Images.** From {glue:text}`images_least:,.0f` to {glue:text}`images_most:,.0f` images the whole
# study grows as images to the power of {glue:text}`exponent:.2f` (the model says
# {glue:text}`predicted_exponent:.2f`): training with {glue:text}`exponent_train:.2f`, fine-tuning
# with {glue:text}`exponent_train_on:.2f`, quantizing and evaluating with
# {glue:text}`exponent_quantize:.2f`, learning roundings with {glue:text}`exponent_learn:.2f`. An
# exponent below one is what does not depend on images: calibration has as many as the params file
# says, a rounding as many iterations, and weights are quantized once. In large studies those terms
# vanish beside the others.
#
# **Seeds.** Two seeds take {glue:text}`additive_seeds:.2f` times twice the seconds of one.
# **Architectures.** Two by themselves take {glue:text}`additive_architectures:.2f` times what they
# take in one study. **Methods.** Two by themselves, what they share counted once, take
# {glue:text}`additive_methods:.2f` times what they take together. One would be exact.
#
# ## The rates of a GPU
#
# No GPU was used for this chapter. These are images per second at {glue:text}`celeba_pixels:.0f`
# pixels that the author of timm {cite}`wightman2019timm` has published with its models:

# %%
cost.rates_table(model.published())

# %% [markdown]
# Four things are assumed beyond them.
#
# - *Single precision* is {glue:text}`single:.0f` times as slow as mixed precision. FP32 models are
#   trained at the precision of their recipe; fine-tuning, the quantizer's own passes, and all
#   predictions are in single precision.
# - *Watching* a layer's inputs in calibration costs no more than the pass itself.
# - *Grids* make a pass {glue:text}`grids:.0f` times as slow: that of fine-tuning, and that of a
#   simulated quantized model, which is what predicts on a GPU.
# - *SqueezeNet* is not in the files. MobileNetV2 stands in for it, slowed by their ratio of
#   multiply-adds, {glue:text}`stand_in_ratio:.2f`. In our own measurement SqueezeNet trains
#   {glue:text}`squeezenet_faster:.1f` times as fast as MobileNetV2, whose many thin layers move
#   more than they multiply; so this is rather too much than too little.
#
# And the GPU was timed on batches larger than ours that lay in its memory, where reading
# photographs must keep up; what a quantized run takes whatever the images, $c_a$, is not in these
# rates. The hours below are rather too few than too many, and meant to one digit.
#
# ## CelebA
#
# `params/celeba.yaml`: {glue:text}`celeba_images:,.0f` training photographs at
# {glue:text}`celeba_pixels:.0f` pixels, {glue:text}`architectures:.0f` architectures,
# {glue:text}`seeds:.0f` seeds, {glue:text}`celeba_runs:,.0f` runs. Hours of one GPU by architecture
# and kind of run:

# %%
celeba = studies["celeba"]
cost.hours_table(model.table(celeba.jobs, model.gpu()))

# %% [markdown]
# Together {glue:text}`celeba_whole:.0f` hours: {glue:text}`celeba_training:.0f` of training and
# predictions, and {glue:text}`celeba_quantizer:.0f` of the quantizer, which calibrates, chooses
# ranges, layers and bits, learns roundings, and has the FP32 model predict for group-aware
# constraints. The quantizer works where the model is.
#
# Which methods those are:

# %%
cost.methods_table(model.table(celeba.jobs, model.gpu(), ["method"]))

# %% [markdown]
# Training FP32 models is {glue:text}`share_train:.0f` % of the training and predictions, and
# fine-tuning {glue:text}`share_train_on:.0f` %, since every method that does it does so for every
# number of bits and every calibration draw. Accuracy control is counted as if it took all the steps
# that it may; where it is content sooner it costs less.
#
# **One more** seed adds {glue:text}`more_seed:.0f` hours, an architecture
# {glue:text}`more_architecture:.0f` on average, a group-aware method {glue:text}`more_method:.0f`,
# a calibration draw {glue:text}`more_draw:.0f`.
#
# **More GPUs.** Runs that share a calibration are one task, and a task is done by one GPU:
# {glue:text}`on_1:.0f` hours on one, {glue:text}`on_4:.0f` on four, {glue:text}`on_8:.0f` on eight.
# Tasks are many and short, so that little is lost.
#
# ## The other collections

# %%
cost.overview_table(cost.overview(studies))

# %% [markdown]
# ## Summary
#
# - The cost of a study is a sum over its runs. Fitted to a small study, it is right to
#   {glue:text}`miss_most:.0f` % for one with four times the images.
# - The full study on CelebA takes {glue:text}`celeba_whole:.0f` GPU hours by this model,
#   {glue:text}`celeba_training:.0f` of them training and predictions and
#   {glue:text}`celeba_quantizer:.0f` the quantizer; on UTKFace {glue:text}`utkface_whole:.0f`, on
#   FairFace {glue:text}`fairface_whole:.0f`.
# - *What would change our mind*: a measurement on a GPU. Were single precision as fast as mixed
#   precision there, CelebA would take {glue:text}`whole_least:.0f` GPU hours; were it
#   {glue:text}`single_most:.0f` times as slow, {glue:text}`whole_most:.0f`.
