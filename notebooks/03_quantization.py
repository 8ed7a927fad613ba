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
# picture at hand (dynamic). `W4A8` means weights of four and inputs of eight bits. The first
# convolution and the last linear layer stay at eight. Batch normalisation is folded into the
# convolutions first. What is shown here is a **simulation**: integers are computed and stored
# exactly, the products are taken in floating point.

# %% tags=["parameters", "remove-cell"]
params_file = "../params/smoke.yaml"

# %% tags=["remove-cell"]
from fairq_utils import chapters, figures

chapter = chapters.open_chapter(params_file)
glue = chapter.glue
effects = chapter.effects()
groups = chapter.group_effects()
static = effects[(effects.method != "fp32") & effects.sampler.isin(["", "random"])]

# %% [markdown]
# ## Accuracy
#
# Change of accuracy from the FP32 model, in points, for every configuration. Static ranges come
# from {glue:text}`03_quantization.ipynb::images:.0f` calibration images drawn at random.

# %%
glue("images", chapter.params.quantization.calibration_images)
figures.configuration_heatmap(static, "accuracy", chapter.crossed)
# %% tags=["remove-cell"]
chapters.glue_extremes(glue, static, chapter.crossed)

# %% [markdown]
# At W8A8 the largest change of any architecture is
# {glue:text}`03_quantization.ipynb::largest_w8a8:+.1f` points. At
# {glue:text}`03_quantization.ipynb::lowest_bits:s` the worst is
# {glue:text}`03_quantization.ipynb::worst_low:+.1f` points
# ({glue:text}`03_quantization.ipynb::worst_low_model:s`). These are naive quantizers: they say
# what goes wrong without care, not what four bits can do.
#
# ## The gap, and what chance does to it
#
# The primary statistic is the *paired change* of a gap: that of the quantized model minus that
# of its own FP32 model, on the same images. The grey band is the noise floor: how far the same
# difference wanders between two models that answer equally well and equally fairly, at this
# number of images. A point inside the band is no finding, whatever its sign.

# %%
floor = chapter.change_floor()
figures.changes(static, "demographic_parity_difference", chapter.crossed, floor)
# %% [markdown]
# Of {glue:text}`03_quantization.ipynb::comparisons:.0f` comparisons,
# {glue:text}`03_quantization.ipynb::outside:.0f` have an interval that excludes zero, and
# {glue:text}`03_quantization.ipynb::equivalent:.0f` are shown to be equivalent to no change
# within {glue:text}`03_quantization.ipynb::margin:.1f` points. The others are undecided at this
# size of test set.

# %% tags=["remove-cell"]
chapters.glue_verdicts(glue, static, chapter)

# %%
figures.changes(static, "equalized_odds_difference", chapter.crossed, chapter.change_floor())
# %% [markdown]
# ## Who loses
#
# Aggregate accuracy can stand still while many answers change. For the narrowest configuration,
# the change of accuracy of every group:

# %%
narrow = chapters.narrowest(groups)
figures.per_group_chart(narrow)
# %% [markdown]
# And the answers that changed: right before and wrong now (*lost*), wrong before and right now
# (*won*), with McNemar's test of the two (mid-p).

# %%
chapters.flip_table(narrow)

# %% [markdown]
# ## Size
#
# Bytes of the integers at their bits, plus scales, zero-points and whatever stayed in float.
# The ideal ratio of W8 is 4, that of W4 is 8; biases, scales and layers that were left alone
# keep the real one below it.

# %%
chapters.quantized_size_table(chapter.sizes())

# %% [markdown]
# ## Summary
#
# - Eight bits cost little; the naive four-bit activations are where networks break, and the
#   depthwise networks break first.
# - A change of a gap must be read against its interval and the noise floor; most at eight bits
#   are inside it.
# - *What would change our mind*: more training seeds, a larger test set, or better four-bit
#   quantizers, which would shift every low-bit row of this chapter.
