# %% [markdown]
# # Quantization
#
# **Question.** What do eight, four and fewer bits do to accuracy, to the gaps, and to single
# predictions, and how much of it is the quantizer's fault?
#
# A quantized layer replaces real weights and inputs by integers on a grid,
#
# $$
# q = \operatorname{clip}\!\left(\operatorname{round}\!\left(\frac{x}{s}\right) + z,\;
# q_{\min},\; q_{\max}\right), \qquad \hat x = s\,(q - z),
# $$
#
# with scale $s$ and zero-point $z$ {cite}`jacob2018quantization`. `W4A8` means weights of four and
# inputs of eight bits. Every method below differs in how it chooses $s$, $z$ and $q$; the network
# between the quantized layers is the same.

# %% tags=["parameters", "remove-cell"]
params_file = "../params/smoke.yaml"
overrides = {}

# %% tags=["remove-cell"]
from fairq_utils.report import anatomy, effects, figures, quantization, rows, tables
from fairq_utils.report.chapter import glue, open_chapter
from fairq_utils.study import recorded

chapter = open_chapter(params_file, overrides)
scope = chapter.crossed
quantized = rows.static_rows(chapter.effects)
specimen = anatomy.specimen(chapter)
blocks = anatomy.block_records(chapter.runs)
anatomy.glue_anatomy(specimen, blocks)
study = recorded.read("methods")

# %% [markdown]
# ## The methods
#
# ### Grids
#
# Weights get one scale per output channel and a symmetric grid ($z = 0$); inputs one scale per
# layer and a zero-point, since most of them are not centred at zero. A symmetric grid spends half
# of its codes on values that a nearly positive input hardly has:

# %% mystnb={"image": {"alt": "Stairs of a symmetric and of an affine grid over the value rounded"}}
anatomy.grids_figure()
# %% [markdown]
# *Static* ranges come from {glue:text}`images:.0f` calibration images drawn at random, *dynamic*
# ones from the image at hand. Batch normalisation is folded into the convolutions first. The first
# and the last layer stay at eight bits, but for the method that is called *min-max, per tensor*
# here: one scale for a whole weight, all layers alike. It is what a first attempt looks like, and
# stands for naive quantization in what follows.
#
# ### Ranges
#
# A range that holds everything is set by its most extreme value; a narrower one clips that value
# and gives all others a finer step. *Min-max* clips nothing, *percentile* a fixed share, *MSE*
# minimises $\sum (x - \hat x)^2$ {cite}`banner2019post,nagel2021white`, *entropy* the
# Kullback-Leibler divergence of the distributions {cite}`migacz2017int8`. Our MSE is that of inputs
# relative to the power of each image, $\sum_i \lVert x_i - \hat x_i \rVert^2 /
# \lVert x_i \rVert^2$: one image whose activations are a hundred times those of the others would
# weigh as much as ten thousand of them, and there are such images. The input with the longest tail
# in {glue:text}`specimen:s`, at four bits:

# %% mystnb={"image": {"alt": "Histogram of a layer's input, with the range that each rule keeps"}}
anatomy.ranges_figure(specimen)
# %% [markdown]
# ### Cross-layer equalization
#
# Where one layer's output reaches the next through a ReLU, dividing output channel $i$ of the first
# by $s_i$ and multiplying the next layer's input channel by it changes no prediction; $s_i =
# \sqrt{r_i^{(1)} / r_i^{(2)}}$ gives both the same range {cite}`nagel2019data`. Per tensor that
# decides over life and death of small channels; per channel it still evens out the inputs.

# %% mystnb={"image": {"alt": "Curves of the largest weight by output channel, before and after"}}
anatomy.equalization_figure(specimen)
# %% [markdown]
# ### Bias correction
#
# Rounding errors of a channel's weights do not cancel: $\mathbb{E}[\hat W \hat x] -
# \mathbb{E}[W x] \ne 0$. The shift is measured on the calibration images, layer after layer, and
# taken off the bias {cite}`nagel2019data`.

# %% mystnb={"image": {"alt": "Histograms of channels' mean errors, before and after correction"}}
anatomy.bias_correction_figure(specimen)
# %% [markdown]
# ### Learnt rounding: AdaRound
#
# The nearest code is the best for a weight, not for the layer's output. AdaRound chooses up or down
# for all weights at once, $\hat w = s\,(\lfloor w/s \rfloor + h(v))$ with $h(v) \in [0, 1]$ driven
# to 0 or 1 while $\lVert f(Wx) - f(\hat W \hat x) \rVert^2$ falls {cite}`nagel2020up`. Most weights
# near a code go there; those in the middle go where they help.

# %% mystnb={"image": {"alt": "Bars of weights rounded up, over their place between two codes"}}
anatomy.rounding_figure(specimen)
# %% [markdown]
# ### Block reconstruction
#
# The same, for a residual block at a time {cite}`li2021brecq`, with the step sizes of its inputs
# learnt along and half of its quantized inputs replaced by real ones at random, so that it does not
# adapt to the errors of these images {cite}`wei2022qdrop`. What is left of each block's squared
# error over the calibration images, at {glue:text}`block_bits:s`:

# %% mystnb={"image": {"alt": "Bars of the error left in each block, a panel per architecture"}}
anatomy.block_errors_figure(blocks)
# %% [markdown]
# ### Mixed precision
#
# Layers differ in what few bits do to them. Bits go where they are needed: with $n_{lb}$ the noise
# that layer $l$ adds at $b$ bits and $m_{lb}$ its bytes, an integer programme minimises $\sum_l
# n_{l b_l}$ within $\sum_l m_{l b_l} \le M$. Here $M$ is the size that uniform four-bit weights
# take; the colour of a layer is what it gets. The published study's *float classifier* is the
# simplest such choice: the last layer stays in float.

# %% mystnb={"image": {"alt": "Bars of signal over noise by layer, coloured by the layer's bits"}}
anatomy.bits_figure(specimen)
# %% [markdown]
# ### Between the layers
#
# Engines also quantize what stands between layers: both operands of residual additions, and
# queries, keys, scores and values of attention. Left out, these stay in float, and the report of
# every quantized model says so; with *additions and attention too* they are quantized as well.
#
# ### Quantization-aware training
#
# Training goes on with quantized weights and inputs; the gradient passes the rounding as if it were
# not there and stops where a value is clipped. LSQ {cite}`esser2020learned` also gives the step
# size the gradient of what it does to the result,
#
# $$
# \frac{\partial \hat x}{\partial s} = \begin{cases}
# \operatorname{round}(x/s) - x/s & \text{inside the grid} \\
# q_{\min} - z \text{ or } q_{\max} - z & \text{outside}
# \end{cases}
# $$

# %% mystnb={"image": {"alt": "Curves of the gradients of a value and of its step, over the value"}}
anatomy.gradients_figure()
# %% [markdown]
# It starts at the calibrated model, with its batch norms folded, and is trained for
# {glue:text}`qat_epochs:.0f` epoch at a fraction of the first learning rate. What belongs to it is
# a *fine-tuning control*: the FP32 network fine-tuned for as long, on the same batches.
#
# ## Accuracy
#
# Change of accuracy from the FP32 model, in points, for every configuration of this study.

# %% mystnb={"image": {"alt": "Heat map of accuracy changes: methods down, architectures across"}}
glue("images", chapter.params.quantization.calibration_images)
glue("qat_epochs", study.about["params"]["quantization"]["tuning"]["epochs"])
figures.heatmap_figure(quantized, "accuracy", scope)
# %% tags=["remove-cell"]
quantization.glue_losses(quantized, scope)
found = quantization.recovery(rows.rows_of(quantized, "accuracy", scope))

# %% [markdown]
# At {glue:text}`most_bits:s` the worst change of any architecture by plain static quantization is
# {glue:text}`most_worst:+.1f` points ({glue:text}`most_worst_model:s`). At
# {glue:text}`fewest_bits:s` it is {glue:text}`fewest_worst:+.1f` points
# ({glue:text}`fewest_worst_model:s`). How much of what the naive quantizer loses does the best of
# the others bring back?

# %%
quantization.recovery_table(quantization.best_of(found))

# %% [markdown]
# ### Over the bits
#
# The same question over more bits and all methods takes longer than a book should take to build.
# What follows was computed once with `params/methods.yaml` ({glue:text}`recorded:.0f` of its
# {glue:text}`planned:.0f` runs without mitigation, 64-pixel images, one training seed) and is kept
# with the book.

# %% mystnb={"image": {"alt": "Lines of accuracy over bits by method, a panel per architecture"}}
glue("clear", 100 * quantization.CLEAR_LOSS)
glue("recorded", study.about["recorded"])
glue("planned", study.about["planned"])
accuracy = study.configurations[study.configurations.statistic == "accuracy"]
quantization.accuracy_over_bits_figure(accuracy)

# %% tags=["nbval-check-output"]
shares = quantization.recovery(accuracy)
quantization.glue_recovery(shares)
quantization.recovery_table(quantization.best_of(shares))

# %% [markdown]
# Where the naive quantizer loses more than {glue:text}`clear:.0f` points
# ({glue:text}`recovered_cases:.0f` cases), the best other method brings back
# {glue:text}`recovered_median:.0f` % of the loss in the median case and
# {glue:text}`recovered_least:.0f` % in the worst ({glue:text}`recovered_least_case:s`). "Best" is
# picked by the very test accuracy that is shown, which flatters it; the lines above have every
# method.
#
# ### Beside other toolkits
#
# Is it our quantizer, or quantization? The same FP32 models, calibration images and bits, quantized
# with the toolkits that practitioners use, each as its documentation recommends. An empty cell is a
# width that a toolkit does not offer for that network; `make bench-toolkits` prints why. Which
# options of a toolkit to use was decided in its favour, with the test accuracy in view; ours is one
# recipe, block reconstruction, for all.

# %% tags=["nbval-check-output"]
peers = recorded.read_benchmark("toolkits")
quantization.glue_toolkits(quantization.beside_toolkits(peers))
quantization.toolkits_table(peers)

# %% [markdown]
# At `W8A8`, ours minus the best of the others is at least {glue:text}`toolkits_full_least:+.1f`
# points over {glue:text}`toolkits_full:.0f` networks. With four-bit weights ours is the best, or
# level with it, in {glue:text}`toolkits_low_best:.0f` of {glue:text}`toolkits_low:.0f` cases;
# better is: {glue:text}`toolkits_behind:s`.
#
# ### What it costs
#
# What a method costs, in seconds of quantizing one model (calibration and, for QAT, training
# included):

# %% tags=["nbval-check-output"]
quantization.costs_table(accuracy)

# %% [markdown]
# ## The gap, and what chance does to it
#
# The primary statistic is the *paired change* of a gap: that of the quantized model minus that of
# its own FP32 model, on the same images. The grey bar behind each point is its noise floor: how far
# the same difference would wander if the predictions that flipped had flipped either way by chance.
# A point inside its bar is no finding, whatever its sign.

# %% mystnb={"image": {"alt": "Changes of the parity gap by method, with interval and noise floor"}}
quantization.changes_figure(quantized, rows.PARITY, scope)
# %% [markdown]
# Of {glue:text}`comparisons:.0f` comparisons, {glue:text}`outside:.0f` have an interval that
# excludes zero, and {glue:text}`beyond_floor:.0f` lie beyond their noise floor. A change is *shown*
# in {glue:text}`shown:.0f`: interval, floor, and a p-value that is corrected for the number of
# comparisons (Holm) agree. *No* change is shown, within {glue:text}`margin:.1f` points, in
# {glue:text}`equivalent:.0f`. The others are undecided at this size of test set. Of networks that
# predict the same of everybody before they are quantized ({glue:text}`same_models:s`;
# {glue:text}`same_comparisons:.0f` comparisons) no absence is counted: their gaps are zero whatever
# they do to anyone.
#
# In {glue:text}`unflipped:.0f` comparisons not one prediction flipped. A gap can also narrow
# because a network is broken: one that gives everybody the same prediction has none. Of the changes
# shown, {glue:text}`shown_broken:.0f` belong to models that lost more than ten points of accuracy.

# %% tags=["remove-cell"]
same = quantization.of_one_prediction(chapter.runs)
quantization.glue_changes(quantized, scope, chapter.params, same)

# %%
quantization.changes_table(quantized, rows.PARITY, scope)
# %% [markdown]
# The same for equalized odds:

# %% mystnb={"image": {"alt": "Changes of the odds gap by method, with interval and noise floor"}}
quantization.changes_figure(quantized, rows.ODDS, scope)
# %% [markdown]
# ## Who loses
#
# Aggregate accuracy can stand still while many predictions change. For the narrowest configuration,
# the change of accuracy of every group:

# %% mystnb={"image": {"alt": "Changes of accuracy by group, a panel per architecture"}}
narrow = quantization.narrowest_rows(chapter.group_effects)
quantization.groups_figure(narrow)
# %% [markdown]
# And the predictions that changed: right before and wrong now (*lost*), wrong before and right now
# (*won*), with McNemar's test of the two (mid-p).

# %%
tables.flips_table(narrow)

# %% [markdown]
# ## Size
#
# Bytes of the integers at their bits, plus scales, zero-points and whatever stayed in float. The
# ideal ratio of W8 is 4, that of W4 is 8; biases, scales and layers that were left alone keep the
# real one below it.

# %%
quantization.sizes_table(effects.sizes(chapter.runs))

# %% [markdown]
# ## Summary
#
# - At {glue:text}`most_bits:s`, {glue:text}`most_hurt:.0f` of {glue:text}`most_configurations:.0f`
#   static configurations certainly lose more than a point of accuracy; at
#   {glue:text}`fewest_bits:s`, {glue:text}`fewest_hurt:.0f` of
#   {glue:text}`fewest_configurations:.0f`, and {glue:text}`fewest_worst_model:s` most.
# - Half of the static configurations flip more than {glue:text}`most_flips:.1%` of the predictions
#   at {glue:text}`most_bits:s` and {glue:text}`fewest_flips:.1%` at {glue:text}`fewest_bits:s`.
# - A change of the demographic parity gap is shown in {glue:text}`shown:.0f` of
#   {glue:text}`comparisons:.0f` comparisons, its absence in {glue:text}`equivalent:.0f`.
# - *What would change our mind*: more training seeds, a larger test set, or better four-bit
#   quantizers, which would shift every low-bit row of this chapter.
