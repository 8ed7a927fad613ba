# %% [markdown]
# # Quantization
#
# **Question.** What do eight and four bits do to accuracy, to the gaps, and to single answers?
#
# A quantized layer replaces real weights and inputs by integers on a grid,
#
# $$
# q = \operatorname{clip}\!\left(\operatorname{round}\!\left(\frac{x}{s}\right) + z,\;
# q_{\min},\; q_{\max}\right), \qquad \hat x = s\,(q - z),
# $$
#
# with scale $s$ and zero-point $z$ {cite}`jacob2018quantization`. Weights get one scale per
# output channel; inputs one per layer, taken from a calibration set (static) or from the
# picture at hand (dynamic). `W4A8` means weights of four and inputs of eight bits. The first and
# the last layer stay at eight. Batch normalisation is folded into the convolutions first. Layers
# with static inputs multiply real integers (bytes, summed in 32 bits) where the processor can, in
# {glue:text}`03_quantization.ipynb::integer:.0f` of
# {glue:text}`03_quantization.ipynb::static:.0f` static runs here; in all others, and with dynamic
# inputs, the same integers are multiplied in floating point, a **simulation**. What lies between
# these layers stays in float.

# %% tags=["parameters", "remove-cell"]
params_file = "../params/smoke.yaml"
overrides = {}

# %% tags=["remove-cell"]
from fairq_utils import chapters, figures, tables

chapter = chapters.open_chapter(params_file, overrides)
glue = chapter.glue
effects = chapter.effects
quantized = chapters.static(effects)

# %% [markdown]
# ## Accuracy
#
# Change of accuracy from the FP32 model, in points, for every configuration. Static ranges come
# from {glue:text}`03_quantization.ipynb::images:.0f` calibration images drawn at random.

# %%
glue("images", chapter.params.quantization.calibration_images)
glue("static", sum(r.run.method == "ptq" for r in chapter.runs))
glue("integer", sum(r.measures.get("integer_layers", 0) > 0 for r in chapter.runs))
figures.configuration_heatmap(quantized, "accuracy", chapter.crossed)
# %% tags=["remove-cell"]
chapters.glue_extremes(quantized, chapter.crossed)

# %% [markdown]
# At {glue:text}`03_quantization.ipynb::most_bits:s` the worst change of any architecture is
# {glue:text}`03_quantization.ipynb::most_worst:+.1f` points
# ({glue:text}`03_quantization.ipynb::most_worst_model:s`). At
# {glue:text}`03_quantization.ipynb::fewest_bits:s` it is
# {glue:text}`03_quantization.ipynb::fewest_worst:+.1f` points
# ({glue:text}`03_quantization.ipynb::fewest_worst_model:s`). These are naive quantizers: they say
# what goes wrong without care, not what four bits can do.
#
# ## The gap, and what chance does to it
#
# The primary statistic is the *paired change* of a gap: that of the quantized model minus that
# of its own FP32 model, on the same images. The grey bar behind each point is its noise floor: how
# far the same difference would wander if the answers that flipped had flipped either way by chance.
# A point inside its bar is no finding, whatever its sign.

# %%
figures.changes(quantized, "demographic_parity_difference", chapter.crossed)
# %% [markdown]
# Of {glue:text}`03_quantization.ipynb::comparisons:.0f` comparisons,
# {glue:text}`03_quantization.ipynb::outside:.0f` have an interval that excludes zero, and
# {glue:text}`03_quantization.ipynb::beyond_floor:.0f` lie beyond their noise floor. A change is
# *shown* in {glue:text}`03_quantization.ipynb::shown:.0f`: interval, floor, and a p-value that is
# corrected for the number of comparisons (Holm) agree. *No* change is shown, within
# {glue:text}`03_quantization.ipynb::margin:.1f` points, in
# {glue:text}`03_quantization.ipynb::equivalent:.0f`. The others are undecided at this size of
# test set.
#
# In {glue:text}`03_quantization.ipynb::unflipped:.0f` comparisons not one answer flipped. A gap
# can also narrow because a network is broken: one that gives everybody the same answer has none.
# Of the changes shown, {glue:text}`03_quantization.ipynb::shown_broken:.0f` belong to models that
# lost more than ten points of accuracy.

# %% tags=["remove-cell"]
chapters.glue_verdicts(quantized, chapter.crossed, chapter.params)

# %%
tables.changes(quantized, chapter.crossed, "demographic_parity_difference")
# %% [markdown]
# The same for equalized odds:

# %%
figures.changes(quantized, "equalized_odds_difference", chapter.crossed)
# %% [markdown]
# ## Who loses
#
# Aggregate accuracy can stand still while many answers change. For the narrowest configuration,
# the change of accuracy of every group:

# %%
narrow = chapters.first_rule(chapters.at_bits(chapter.group_effects, fewest=True))
figures.per_group_chart(narrow)
# %% [markdown]
# And the answers that changed: right before and wrong now (*lost*), wrong before and right now
# (*won*), with McNemar's test of the two (mid-p).

# %%
tables.flips(narrow)

# %% [markdown]
# ## Size
#
# Bytes of the integers at their bits, plus scales, zero-points and whatever stayed in float.
# The ideal ratio of W8 is 4, that of W4 is 8; biases, scales and layers that were left alone
# keep the real one below it.

# %%
tables.sizes(chapter.sizes())

# %% [markdown]
# ## Summary
#
# - At {glue:text}`03_quantization.ipynb::most_bits:s`,
#   {glue:text}`03_quantization.ipynb::most_hurt:.0f` of
#   {glue:text}`03_quantization.ipynb::most_configurations:.0f` static configurations certainly lose
#   more than a point of accuracy; at {glue:text}`03_quantization.ipynb::fewest_bits:s`,
#   {glue:text}`03_quantization.ipynb::fewest_hurt:.0f` of
#   {glue:text}`03_quantization.ipynb::fewest_configurations:.0f`, and
#   {glue:text}`03_quantization.ipynb::fewest_worst_model:s` most.
# - Half of the static configurations flip more than
#   {glue:text}`03_quantization.ipynb::most_flips:.1%` of the answers at
#   {glue:text}`03_quantization.ipynb::most_bits:s` and
#   {glue:text}`03_quantization.ipynb::fewest_flips:.1%` at
#   {glue:text}`03_quantization.ipynb::fewest_bits:s`.
# - A change of the demographic parity gap is shown in
#   {glue:text}`03_quantization.ipynb::shown:.0f` of
#   {glue:text}`03_quantization.ipynb::comparisons:.0f` comparisons, its absence in
#   {glue:text}`03_quantization.ipynb::equivalent:.0f`.
# - *What would change our mind*: more training seeds, a larger test set, or better four-bit
#   quantizers, which would shift every low-bit row of this chapter.
