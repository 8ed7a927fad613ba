# %% [markdown]
# # How we measure
#
# **Question.** When is a difference of a point, or of a tenth of one, a finding?
#
# The effects that this book looks for are small, the groups are a few hundred pictures, and the
# training of the models is random. Published studies of the same question contradict each other
# partly because they leave that out. This chapter says what every number of the other chapters
# stands on, and shows with two of our own models how easily one is misled.

# %% tags=["parameters", "remove-cell"]
params_file = "../params/smoke.yaml"
overrides = {}

# %% tags=["remove-cell"]
import numpy as np

from fairq_utils import stats
from fairq_utils.bench.coverage import PROMISED, PROMISED_FROM
from fairq_utils.report import chapter as chapters
from fairq_utils.report import figures, measuring, tables
from fairq_utils.training.zoo import display_name

chapter = chapters.open_chapter(params_file, overrides)
glue = chapter.glue
effects = chapter.effects

# %% [markdown]
# ## Counts
#
# A quantized model and its FP32 model answer about the same pictures. All that fairness needs to
# know of this is a table of counts
#
# $$
# n_{g y a b} = \#\{i : g_i = g,\; y_i = y,\; \hat y_i^{\text{FP32}} = a,\;
# \hat y_i^{\text{quantized}} = b\},
# $$
#
# pictures by group, true label and the two predictions. A rate is a ratio of two sums of such
# counts, for instance
#
# $$
# \text{selection rate}_g = \frac{\sum_{y} n_{g y \cdot 1}}{\sum_{y b} n_{g y \cdot b}},
# \qquad
# \text{TPR}_g = \frac{n_{g 1 \cdot 1}}{\sum_b n_{g 1 \cdot b}},
# \qquad
# \text{FPR}_g = \frac{n_{g 0 \cdot 1}}{\sum_b n_{g 0 \cdot b}},
# $$
#
# and a gap is the largest minus the smallest rate over groups {cite}`hardt2016equality`. Where a
# denominator is empty the rate does not exist: it is left out and said, never put to 0 or 1.
#
# ## A gap is biased upwards
#
# The largest of several noisy rates minus the smallest is positive even if no group differs. The
# grey bars are what chance makes of each gap at the group sizes of this test set: they end at the
# value that one study in twenty exceeds, and the line in them is the average. Points are our FP32
# models. A gap inside its bar is no evidence that groups differ.

# %% mystnb={"image": {"alt": "Gaps of models as points, by rate, over bars of what chance makes"}}
bands = measuring.null_bands(chapter.runs, chapter.params)
figures.null_bands(bands)
# %% tags=["remove-cell"]
accuracy = bands[bands.rate == "accuracy"]
glue("null_mean", 100 * accuracy["mean"].mean())
glue("null_high", 100 * accuracy["high"].mean())
glue("inside", int((accuracy.gap <= accuracy.high).sum()))
glue("models", len(accuracy))

# %% [markdown]
# For accuracy, chance alone makes {glue:text}`06_measuring.ipynb::null_mean:.1f` points on average
# and up to {glue:text}`06_measuring.ipynb::null_high:.1f` in nineteen of twenty studies;
# {glue:text}`06_measuring.ipynb::inside:.0f` of {glue:text}`06_measuring.ipynb::models:.0f` models
# stay inside. A gap in selection rate can lie outside for another reason: the groups' base rates
# differ, and a good classifier says so.
#
# ## The statistic: a paired change
#
# We do not ask how large a gap is but what quantization did to it:
#
# $$
# \Delta = \text{gap}(\text{quantized}) - \text{gap}(\text{its own FP32 model}),
# $$
#
# both on the same pictures. Most pictures get the same answer twice and cancel, so the change is
# known far better than either gap.

# %% tags=["remove-cell"]
pairs = measuring.pairs_at(chapter.runs, chapters.at_bits(effects, fewest=False))
gains = [measuring.pairing_gain(b, a, chapter.params) for a, b in pairs]
glue("gain_low", np.nanmin(gains))
glue("gain_high", np.nanmax(gains))
glue("most_bits", pairs[0][1].run.bits)

# %% [markdown]
# At {glue:text}`06_measuring.ipynb::most_bits:s`, pairing makes the change of the demographic
# parity gap between {glue:text}`06_measuring.ipynb::gain_low:.1f` and
# {glue:text}`06_measuring.ipynb::gain_high:.1f` times as precise as two separate test sets of the
# same size would.
#
# **Interval.** A bootstrap over pictures is one multinomial draw over the cells of the table
# {cite}`efron1993introduction`, whatever the number of pictures; every metric of both models is
# computed from the same draw. With several training seeds, seeds are drawn first and pictures
# after, the same pictures in all of them since all seeds answer about one test set.
#
# **Noise floor.** Suppose that it did not matter which of the two models gave which answer. Then in
# every cell of group and label the $n_{01} + n_{10}$ answers that flipped are as likely to have
# flipped one way as the other:
#
# $$
# n_{01}^* \sim \text{Binomial}\!\left(n_{01} + n_{10}, \tfrac12\right).
# $$
#
# The 95th percentile of $|\Delta|$ under this exchange is the floor of that configuration, and the
# share of draws that reach the observed $|\Delta|$ its p-value: McNemar's test
# {cite}`mcnemar1947note` carried over to any metric.
#
# **Verdict.** A change is *shown* where the interval excludes zero, the estimate lies beyond its
# floor, and the p-value stays below 5 % after Holm's correction {cite}`holm1979simple` for all
# comparisons of the chapter. *No change* is shown where the whole interval lies within the margin
# of the params file: absence of evidence is not enough {cite}`schuirmann1987comparison`. All else
# is *undecided*, and the book says so.
#
# ## An apparent bias that is noise
#
# This is the largest change of the demographic parity gap in this study that its floor explains.

# %% tags=["remove-cell"]
row = measuring.apparent_bias(effects, chapter.crossed)
glue("bias_model", display_name(row.architecture))
glue("bias_configuration", tables.label(row))
glue("bias_before", 100 * row.reference)
glue("bias_after", 100 * row.compared)
glue("bias_change", 100 * row.change)
glue("bias_floor", 100 * row.floor)
glue("bias_low", 100 * row.low)
glue("bias_high", 100 * row.high)
glue("bias_p", row.p_value)
judged = stats.verdict(
    stats.differs(), row.change, row.low, row.high, p_value=row.p_value, floor=row.floor
)
glue("bias_verdict", judged.outcome)

# %% [markdown]
# {glue:text}`06_measuring.ipynb::bias_model:s`,
# {glue:text}`06_measuring.ipynb::bias_configuration:s`: the gap goes from
# {glue:text}`06_measuring.ipynb::bias_before:.1f` to
# {glue:text}`06_measuring.ipynb::bias_after:.1f` points, a change of
# {glue:text}`06_measuring.ipynb::bias_change:+.1f`. Printed alone, with the digits that papers
# print, this is a result. But as many flipped answers, flipped by the toss of a coin, move the
# gap by up to {glue:text}`06_measuring.ipynb::bias_floor:.1f` points in nineteen of twenty tosses
# (p = {glue:text}`06_measuring.ipynb::bias_p:.2f`); the interval runs from
# {glue:text}`06_measuring.ipynb::bias_low:+.1f` to
# {glue:text}`06_measuring.ipynb::bias_high:+.1f`. That there is a change is
# {glue:text}`06_measuring.ipynb::bias_verdict:s`.
#
# ## Accuracy stands still and answers flip
#
# The opposite mistake is to look at the aggregate alone. Of the quantized models whose accuracy
# does not change by more than chance, this is the one in which a single group's answers change most
# clearly.

# %%
still, flipped = measuring.silent_flips(effects, chapter.group_effects)
tables.flips(flipped)
# %% tags=["remove-cell"]
glue("still_model", display_name(still.architecture))
glue("still_configuration", tables.label(still))
glue("still_change", 100 * still.change)
glue("still_flips", still.flips)
clearest = flipped.loc[flipped.p_value.idxmin()]
glue("still_group", clearest.group)
glue("still_lost", clearest.lost)
glue("still_won", clearest.won)
glue("still_p", clearest.p_value)
glue("still_groups", len(flipped))
corrected = stats.adjusted(dict(zip(flipped.group, flipped.p_value, strict=True)))
glue("still_holm", corrected.set_index("test").holm[clearest.group])

# %% [markdown]
# {glue:text}`06_measuring.ipynb::still_model:s`,
# {glue:text}`06_measuring.ipynb::still_configuration:s`: accuracy changes by
# {glue:text}`06_measuring.ipynb::still_change:+.1f` points, while
# {glue:text}`06_measuring.ipynb::still_flips:.1%` of all answers flip. Among
# {glue:text}`06_measuring.ipynb::still_group:s` people,
# {glue:text}`06_measuring.ipynb::still_lost:.0f` right answers were lost and
# {glue:text}`06_measuring.ipynb::still_won:.0f` won
# (p = {glue:text}`06_measuring.ipynb::still_p:.3f`; corrected for the
# {glue:text}`06_measuring.ipynb::still_groups:.0f` groups, and not for our having searched for it,
# {glue:text}`06_measuring.ipynb::still_holm:.3f`). This is why every chapter counts flips beside
# rates {cite}`hooker2019compressed`.
#
# ## How often the intervals are right
#
# Percent of simulated test sets whose nominal 95 % interval holds the truth, by images per group.
# In the world *apart* the groups differ, so that a gap has a largest and a smallest group; in
# *equal* no group differs and quantization changes nothing; in *tied* a gap opens between groups
# that were equal. `level` is a quantized model's own value, `change` the paired change.

# %%
for what, kept in measuring.kept_promises().items():
    glue(f"kept_{what}", kept)
glue("promised_from", PROMISED_FROM)
glue("promised_low", 100 * PROMISED[0])
glue("promised_high", 100 * PROMISED[1])
tables.shown(measuring.coverage())

# %% [markdown]
# From {glue:text}`06_measuring.ipynb::promised_from:.0f` images per group, in the world *apart*,
# coverage lies between {glue:text}`06_measuring.ipynb::promised_low:.0f` and
# {glue:text}`06_measuring.ipynb::promised_high:.0f` % in
# {glue:text}`06_measuring.ipynb::kept_level:s` cells for a model's own values and in
# {glue:text}`06_measuring.ipynb::kept_change:s` for changes, all recorded statistics counted. Where
# groups are tied the promise fails: no interval of a gap can
# hold a true value of 0, and where a gap opens between equal groups the gap before is biased
# upwards, so that the change looks too small. There the noise floor decides, and the signed
# difference of two named groups.
#
# ## What this study could find
#
# The smallest true change of an accuracy gap, in points, between the smallest and the largest group
# here, that would be found four times in five, if as many answers flip as at
# {glue:text}`06_measuring.ipynb::most_bits:s`.

# %%
flips = chapters.at_bits(effects, fewest=False).flips.median()
sizes = chapter.group_counts().sum(axis=(1, 2))
power = measuring.detectable(float(flips), sizes)
tables.shown(power)
# %% tags=["remove-cell"]
glue("detectable", float(power.iloc[0, 1]))

# %% [markdown]
# With one seed and this test set, changes under
# {glue:text}`06_measuring.ipynb::detectable:.1f` points are mostly missed. A study that reports
# smaller ones from one seed, or that it found none, should be read with that in mind.
#
# ## Summary
#
# - A max-min gap of {glue:text}`06_measuring.ipynb::null_mean:.1f` points in accuracy is what equal
#   groups of this size show on average.
# - We measure paired changes, each with its interval and its own noise floor, and judge them as one
#   family.
# - Counts make this exact and cheap: a bootstrap replicate costs as many draws as there are cells,
#   not as there are pictures.
# - *What would change our mind* about a single verdict: other training seeds. Seeds, not pictures,
#   are what one would like to generalise over, and no resampling of pictures stands in for them.
