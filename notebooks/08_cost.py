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
from fairq_utils.report import chapter as chapters
from fairq_utils.report import cost as cost_chapter
from fairq_utils.report import cost as cost_display
from fairq_utils.study import cost, recorded

chapter = chapters.open_chapter(params_file, overrides)
measured = recorded.read_benchmark("cost")
studies = cost_chapter.planned()
cost_chapter.glue_growth(measured)
cost_chapter.glue_cost(studies)

# %% [markdown]
# ## The sum
#
# For a run $r$ of architecture $a$,
#
# $$
# t_r = \frac{E\,N_{\text{train}}}{v^{\text{train}}_a}
#     + \frac{E'\,N'_{\text{train}}}{v^{\text{tune}}_a}
#     + \frac{N_{\text{test}}}{v^{\text{answer}}_a}
#     + \frac{N_{\text{calibration}}}{v^{\text{watch}}_a}
#     + \frac{L_r}{v^{\text{look}}_a}
#     + \frac{B\,I}{v^{\text{learn}}_a}
#     + c_a ,
# $$
#
# with the epochs $E$ of FP32 training and $E'$ of training on, numbers of images $N$, images $L_r$
# that a method looks at while it chooses ranges, layers or bits, $I$ iterations on batches of $B$
# where roundings are learnt, rates $v$ in images per second, and seconds $c_a$ that a quantized run
# takes whatever the images. A term is there for the runs that do it. Runs that share a calibration
# share its term. So the cost is linear in the images of each split, and in the numbers of seeds and
# of calibration draws; architectures and methods add, each with its own rates and terms.
#
# ## Is it so?
#
# `make bench-cost` computes a small study ({glue:text}`08_cost.ipynb::pixels:.0f` pixels,
# {glue:text}`08_cost.ipynb::architectures_measured:s`, one thread of an
# {glue:text}`08_cost.ipynb::processor:s`) at three sizes, each from nothing but its pictures. Dots
# are seconds of the processor; lines are the sum above, with rates that were fitted to the smallest
# size alone.

# %% mystnb={"image": {"alt": "Seconds over images by kind of run: dots measured, lines predicted"}}
cost_display.growth(measured)

# %%
cost_display.sizes(measured)

# %% [markdown]
# At the larger sizes the model is off by at most {glue:text}`08_cost.ipynb::miss_most:.0f` % for a
# whole study, and by at most {glue:text}`08_cost.ipynb::worst_miss:.0f` % for one kind of run
# ({glue:text}`08_cost.ipynb::worst_case:s`).
#
# **Images.** From {glue:text}`08_cost.ipynb::images_least:,.0f` to
# {glue:text}`08_cost.ipynb::images_most:,.0f` images the whole study grows as images to the power
# of {glue:text}`08_cost.ipynb::exponent:.2f` (the model says
# {glue:text}`08_cost.ipynb::predicted_exponent:.2f`): training with
# {glue:text}`08_cost.ipynb::exponent_train:.2f`, training on with
# {glue:text}`08_cost.ipynb::exponent_train_on:.2f`, quantizing and evaluating with
# {glue:text}`08_cost.ipynb::exponent_quantize:.2f`, learning roundings with
# {glue:text}`08_cost.ipynb::exponent_learn:.2f`. An exponent below one is what does not depend on
# images: calibration has as many as the params file says, a rounding as many iterations, and
# weights are quantized once. In large studies those terms vanish beside the others.
#
# **Seeds.** Two seeds take {glue:text}`08_cost.ipynb::additive_seeds:.2f` times twice the seconds
# of one. **Architectures.** Two by themselves take
# {glue:text}`08_cost.ipynb::additive_architectures:.2f` times what they take in one study.
# **Methods.** Two by themselves, what they share counted once, take
# {glue:text}`08_cost.ipynb::additive_methods:.2f` times what they take together. One would be
# exact.
#
# ## The rates of a GPU
#
# No GPU was used for this chapter. These are images per second at
# {glue:text}`08_cost.ipynb::celeba_pixels:.0f` pixels that the author of timm
# {cite}`wightman2019timm` has published with its models:

# %%
cost_display.rates(cost.published())

# %% [markdown]
# Four things are assumed beyond them.
#
# - *Single precision* is {glue:text}`08_cost.ipynb::single:.0f` times as slow as mixed precision.
#   FP32 models are trained at the precision of their recipe; what trains on, the quantizer's own
#   passes, and all answers are in single precision.
# - *Watching* a layer's inputs in calibration costs no more than the pass itself.
# - *Grids* make a pass {glue:text}`08_cost.ipynb::grids:.0f` times as slow: that of training on,
#   and that of a simulated quantized model, which is what answers on a GPU.
# - *SqueezeNet* is not in the files. MobileNetV2 stands in for it, slowed by their ratio of
#   multiply-adds, {glue:text}`08_cost.ipynb::stand_in_ratio:.2f`. In our own measurement SqueezeNet
#   trains {glue:text}`08_cost.ipynb::squeezenet_faster:.1f` times as fast as MobileNetV2, whose
#   many thin layers move more than they multiply; so this is rather too much than too little.
#
# And the GPU was timed on batches larger than ours that lay in its memory, where reading
# photographs must keep up; what a quantized run takes whatever the images, $c_a$, is not in these
# rates. The hours below are rather too few than too many, and meant to one digit.
#
# ## CelebA
#
# `params/celeba.yaml`: {glue:text}`08_cost.ipynb::celeba_images:,.0f` training photographs at
# {glue:text}`08_cost.ipynb::celeba_pixels:.0f` pixels,
# {glue:text}`08_cost.ipynb::architectures:.0f` architectures,
# {glue:text}`08_cost.ipynb::seeds:.0f` seeds,
# {glue:text}`08_cost.ipynb::celeba_runs:,.0f` runs. Hours of one GPU by architecture and kind of
# run:

# %%
celeba = studies["celeba"]
cost_display.hours(cost.table(celeba.jobs, cost.gpu()))

# %% [markdown]
# Together {glue:text}`08_cost.ipynb::celeba_whole:.0f` hours:
# {glue:text}`08_cost.ipynb::celeba_training:.0f` of training and answers, and
# {glue:text}`08_cost.ipynb::celeba_quantizer:.0f` of the quantizer, which calibrates, chooses
# ranges, layers and bits, learns roundings, and asks the FP32 model about the groups that a
# constraint minds. The quantizer works where the model is.
#
# Which methods those are:

# %%
cost_display.methods(cost.table(celeba.jobs, cost.gpu(), ["method"]))

# %% [markdown]
# Training FP32 models is {glue:text}`08_cost.ipynb::share_train:.0f` % of the training and
# answers, and training on {glue:text}`08_cost.ipynb::share_train_on:.0f` %, since every method that
# does it does so for every number of bits and every calibration draw. Accuracy control is counted
# as if it took all the steps that it may; where it is content sooner it costs less.
#
# **One more** seed adds {glue:text}`08_cost.ipynb::more_seed:.0f` hours, an architecture
# {glue:text}`08_cost.ipynb::more_architecture:.0f` on average, a method that minds groups
# {glue:text}`08_cost.ipynb::more_method:.0f`, a calibration draw
# {glue:text}`08_cost.ipynb::more_draw:.0f`.
#
# **More GPUs.** Runs that share a calibration are one task, and a task is done by one GPU:
# {glue:text}`08_cost.ipynb::on_1:.0f` hours on one, {glue:text}`08_cost.ipynb::on_4:.0f` on four,
# {glue:text}`08_cost.ipynb::on_8:.0f` on eight. Tasks are many and short, so that little is lost.
#
# ## The other collections

# %%
cost_display.studies(cost_chapter.overview(studies))

# %% [markdown]
# ## Summary
#
# - The cost of a study is a sum over its runs. Fitted to a small study, it is right to
#   {glue:text}`08_cost.ipynb::miss_most:.0f` % for one with four times the images.
# - The full study on CelebA takes {glue:text}`08_cost.ipynb::celeba_whole:.0f` GPU hours by
#   this model, {glue:text}`08_cost.ipynb::celeba_training:.0f` of them training and answers and
#   {glue:text}`08_cost.ipynb::celeba_quantizer:.0f` the quantizer; on UTKFace
#   {glue:text}`08_cost.ipynb::utkface_whole:.0f`, on FairFace
#   {glue:text}`08_cost.ipynb::fairface_whole:.0f`.
# - *What would change our mind*: a measurement on a GPU. Were single precision as fast as mixed
#   precision there, CelebA would take {glue:text}`08_cost.ipynb::whole_least:.0f` GPU hours;
#   were it {glue:text}`08_cost.ipynb::single_most:.0f` times as slow,
#   {glue:text}`08_cost.ipynb::whole_most:.0f`.
