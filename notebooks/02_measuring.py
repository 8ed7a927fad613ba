# %% [markdown]
# # How we measure
#
# **Question.** When is a difference of a point, or of a tenth of one, a finding?
#
# The effects that this book looks for are small, the groups are a few hundred images, and the
# training of the models is random. Published studies of the same question contradict each other
# partly because they leave that out. This chapter says what every number of the other chapters
# stands on, and shows with two of our own models how easily one is misled.

# %% tags=["parameters", "remove-cell"]
params_file = "../params/smoke.yaml"
overrides = {}

# %% tags=["remove-cell"]
from fairq_utils.bench.coverage import PROMISED, PROMISED_FROM
from fairq_utils.report import instrument, measuring, tables
from fairq_utils.report.chapter import open_chapter

chapter = open_chapter(params_file, overrides)

# %% [markdown]
# ## Counts
#
# A quantized model and its FP32 model are evaluated on the same images. All that fairness needs to
# know of this is a table of counts
#
# $$
# n_{g y a b} = \#\{i : g_i = g,\; y_i = y,\; \hat y_i^{\text{FP32}} = a,\;
# \hat y_i^{\text{quantized}} = b\},
# $$
#
# images by group, true label and the two predictions. A rate is a ratio of two sums of such counts,
# for instance
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
bands = measuring.null_bands(chapter)
measuring.glue_null_bands(bands)
measuring.null_bands_figure(bands)

# %% [markdown]
# For accuracy, chance alone makes {glue:text}`null_mean:.1f` points on average and up to
# {glue:text}`null_high:.1f` in nineteen of twenty studies; {glue:text}`inside:.0f` of
# {glue:text}`models:.0f` models stay inside. A gap in selection rate can lie outside for another
# reason: the groups' base rates differ, and a good classifier says so.
#
# ## The statistic: a paired change
#
# We do not ask how large a gap is but what quantization did to it:
#
# $$
# \Delta = \text{gap}(\text{quantized}) - \text{gap}(\text{its own FP32 model}),
# $$
#
# both on the same images. Most images get the same prediction twice and cancel, so the change is
# known far better than either gap.

# %% tags=["remove-cell"]
measuring.glue_pairing(chapter)

# %% [markdown]
# At {glue:text}`most_bits:s`, pairing makes the change of the demographic parity gap between
# {glue:text}`gain_low:.1f` and {glue:text}`gain_high:.1f` times as precise as two separate test
# sets of the same size would.
#
# **Interval.** A bootstrap over images is one multinomial draw over the cells of the table
# {cite}`efron1993introduction`, whatever the number of images; every metric of both models is
# computed from the same draw. With several training seeds, seeds are drawn first and images after,
# the same images in all of them since all seeds are evaluated on one test set.
#
# **Noise floor.** Suppose that it did not matter which of the two models gave which prediction.
# Then in every cell of group and label the $n_{01} + n_{10}$ predictions that flipped are as likely
# to have flipped one way as the other:
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
# ## A harm that we planted
#
# Before it measures models, the instrument measures what is known. In this study of counts, W8A8
# turns as many right predictions wrong as wrong ones right, in every group and label: there is
# nothing to find. W4A4 does the same, but for old women who smile: of them it loses
# {glue:text}`planted_lost:.0f` right predictions and wins none. The true change of their accuracy
# is {glue:text}`planted_change:+.1f` points.

# %% tags=["nbval-check-output"]
instrument.glue_planted()
instrument.planted_groups_table()
# %% tags=["nbval-check-output"]
instrument.planted_table()

# %% [markdown]
# The group that was harmed is found, at {glue:text}`planted_found:+.1f` points
# [{glue:text}`planted_low:+.1f`, {glue:text}`planted_high:+.1f`], and no other; of the
# {glue:text}`planted_statistics:.0f` statistics {glue:text}`planted_none:.0f` are shown to change
# at W8A8. And one statistic overlooks the harm: a group that is denied smiles has fewer positive
# predictions, and that moved the demographic parity gap by {glue:text}`planted_parity:+.1f` points,
# {glue:text}`planted_parity_verdict:s`, while the equal opportunity gap grew by
# {glue:text}`planted_opportunity:+.1f`, {glue:text}`planted_opportunity_verdict:s`. A study that
# reports demographic parity alone would have missed it.
#
# Parts whose right answer can be computed by hand are checked whenever this chapter is executed;
# {glue:text}`checks_right:.0f` of {glue:text}`checks:.0f` find what is known.

# %% tags=["nbval-check-output"]
known = instrument.checks(chapter)
instrument.glue_checks(known)
tables.html_table(known)

# %% [markdown]
# ## An apparent bias that is noise
#
# This is the largest change of the demographic parity gap in this study that its floor explains.

# %% tags=["remove-cell"]
measuring.glue_apparent_bias(chapter)

# %% [markdown]
# {glue:text}`bias_model:s`, {glue:text}`bias_configuration:s`: the gap goes from
# {glue:text}`bias_before:.1f` to {glue:text}`bias_after:.1f` points, a change of
# {glue:text}`bias_change:+.1f`. Printed alone, with the digits that papers print, this is a result.
# But as many flipped predictions, flipped by the toss of a coin, move the gap by up to
# {glue:text}`bias_floor:.1f` points in nineteen of twenty tosses (p = {glue:text}`bias_p:.2f`); the
# interval runs from {glue:text}`bias_low:+.1f` to {glue:text}`bias_high:+.1f`. Among all changes of
# the chapter on quantization, this one is {glue:text}`bias_verdict:s`.
#
# ## Accuracy stands still and predictions flip
#
# The opposite mistake is to look at the aggregate alone. Of the quantized models whose accuracy
# does not change by more than chance, this is the one in which a single group's predictions change
# most clearly.

# %%
still, flipped = measuring.silent_flips(chapter.effects, chapter.group_effects)
measuring.glue_silent_flips(still, flipped)
tables.flips_table(flipped)

# %% [markdown]
# {glue:text}`still_model:s`, {glue:text}`still_configuration:s`: accuracy changes by
# {glue:text}`still_change:+.1f` points, while {glue:text}`still_flips:.1%` of all predictions flip.
# Among {glue:text}`still_group:s` people, {glue:text}`still_lost:.0f` right predictions were lost
# and {glue:text}`still_won:.0f` won (p = {glue:text}`still_p:.3f`; corrected for the
# {glue:text}`still_groups:.0f` groups, and not for our having searched for it,
# {glue:text}`still_holm:.3f`). This is why every chapter counts flips beside rates
# {cite}`hooker2019compressed`.
#
# ## How often the intervals are right
#
# Percent of simulated test sets whose nominal 95 % interval holds the truth, by images per group.
# In the world *apart* the groups differ, so that a gap has a largest and a smallest group; in
# *equal* no group differs and quantization changes nothing; in *tied* a gap opens between groups
# that were equal. `level` is a quantized model's own value, `change` the paired change.

# %% tags=["nbval-check-output"]
measuring.glue_coverage(PROMISED_FROM, PROMISED)
measuring.coverage_table()

# %% [markdown]
# From {glue:text}`covered_from:.0f` images per group, in the world *apart*, coverage lies between
# {glue:text}`covered_low:.0f` and {glue:text}`covered_high:.0f` % in {glue:text}`kept_level:s`
# cells for a model's own values and in {glue:text}`kept_change:s` for changes, all recorded
# statistics counted. Where groups are tied this fails: no interval of a gap can hold a true value
# of 0, and where a gap opens between equal groups the gap before is biased upwards, so that the
# change looks too small. There the noise floor decides, and the signed difference of two named
# groups.
#
# ## What this study could find
#
# The smallest true change of an accuracy gap, in points, between the smallest and the largest group
# here, that would be found four times in five, if as many predictions flip as at
# {glue:text}`most_bits:s`. One seed finds what happened to its own network. Several are about
# others, taken to differ by a standard deviation of {glue:text}`between_seeds:.1f` points; they are
# tested on the same images, so that more seeds do not make up for few images.

# %%
power = measuring.power(chapter)
measuring.glue_power(power)
tables.html_table(power)

# %% [markdown]
# With one seed and this test set, changes under {glue:text}`detectable:.1f` points are mostly
# missed. A study that reports smaller ones from one seed, or that it found none, should be read
# with that in mind.
#
# ## Summary
#
# - A max-min gap of {glue:text}`null_mean:.1f` points in accuracy is what equal groups of this size
#   show on average.
# - We measure paired changes, each with its interval and its own noise floor, and judge them as one
#   family.
# - Counts make this exact and cheap: a bootstrap replicate costs as many draws as there are cells,
#   not as there are images.
# - *What would change our mind* about a single verdict: other training seeds. Seeds, not images,
#   are what one would like to generalise over, and no resampling of images stands in for them.
