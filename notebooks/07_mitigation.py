# %% [markdown]
# # Mitigation
#
# **Question.** Can quantization be made to keep the groups that a network serves, by whom it is
# calibrated on, by where its bits go, or by training; and can anybody be given a guarantee that it
# does?
#
# The published study claims that calibrating on a demographically balanced set halves the change of
# the gap for free, and that fine-tuning halves it as well. Every method here is measured as that
# claim should have been: against plain quantization of the *same* checkpoint at the *same* bits, on
# the same test images, with the interval of the difference and its noise floor.

# %% tags=["parameters", "remove-cell"]
params_file = "../params/smoke.yaml"
overrides = {}

# %% tags=["remove-cell"]
from fairq_utils.report import calibration, certificates, dials, effects, mitigation, rows, tables
from fairq_utils.report.chapter import glue, open_chapter
from fairq_utils.study import planning, recorded

chapter = open_chapter(params_file, overrides)
scope = chapter.crossed
replicates = chapter.params.analysis.replicates
balanced = chapter.measured("random", effects.against_random)
plain = chapter.measured("plain", effects.against_plain)
calibration.glue_rarest(chapter)
glue("images", chapter.params.quantization.calibration_images)

# %% [markdown]
# ## Who is in the calibration set
#
# A static quantizer is calibrated on {glue:text}`images:.0f` images here before it is deployed, and
# sets its ranges by them. Where the rarest group ({glue:text}`rarest:s`) is {glue:text}`rare:.1%`
# of them, ranges are set by everybody else. Images per group in one random and one balanced draw of
# equal size:

# %% tags=["nbval-check-output"]
tables.html_table(planning.calibration_draws(chapter.study))

# %% [markdown]
# ### Does it matter who is in it?
#
# What decides is whether groups differ in the activations that ranges are set by. Left: the
# smallest and largest input of a layer by group, over the range that MSE over all images chooses
# (grey). Right: the share of each group's values outside that range. Shown are the layers in which
# groups differ most in what is clipped.

# %% tags=["wide"] mystnb={"image": {"alt": "Input ranges and values clipped, by layer and group"}}
bits = mitigation.fewest_bits(chapter)
clipped = calibration.clipping(chapter, bits)
calibration.glue_clipping(chapter, clipped, bits)
calibration.clipping_figure(clipped)
# %% [markdown]
# This is {glue:text}`clipped_model:s` at {glue:text}`clipped_bits:s`. The most that the clipped
# share of two groups differs in any layer is {glue:text}`clipped_apart:.2f` percentage points; in
# the median layer it is {glue:text}`clipped_median:.3f`. The error that quantization leaves in an
# input, relative to its power, is at most {glue:text}`error_ratio:.2f` times as large for one group
# as for another, in the median layer {glue:text}`error_median:.2f` times.
#
# ### Random against balanced
#
# Left: the change of the demographic parity gap from FP32 after random (open) and balanced (filled)
# calibration. Right: balanced minus random, paired on the same images, with its interval and its
# noise floor; left of zero is better.

# %% tags=["wide"] mystnb={"image": {"alt": "Changes of parity gap, random and balanced, by model"}}
calibration.balance_figure(balanced, rows.PARITY, scope)
# %% tags=["remove-cell"]
calibration.glue_balance(chapter, balanced)

# %% [markdown]
# Over {glue:text}`pairs:.0f` pairs, balanced calibration changes the demographic parity gap by
# {glue:text}`mean_change:+.2f` points on average. It is shown to narrow the gap in
# {glue:text}`better:.0f` pairs and to widen it in {glue:text}`worse:.0f`; beyond its noise floor
# alone, in either direction, lie {glue:text}`beyond_floor:.0f`. Accuracy changes by
# {glue:text}`accuracy_change:+.2f` points on average.
#
# To halve a change there must first be one: random calibration is shown to widen the gap in
# {glue:text}`widened:.0f` of {glue:text}`static:.0f` static configurations (their intervals stand
# in the chapter on quantization).
#
# The noise floor is about test images, not about the draw. Each sampler was drawn
# {glue:text}`draws:s` per model here. Under min-max ranges a single odd image in the draw sets a
# layer's range for everybody, so that two random draws can differ as much as a random and a
# balanced one.

# %%
calibration.balance_table(balanced, scope)

# %% [markdown]
# ## The methods
#
# *Calibration.* The same number of images, drawn otherwise: labels alike, groups alike, alike over
# gender, age and ancestry, in the proportions of the population, by coverage of the network's
# features {cite}`sener2018active`, from the worst group alone. Probes: one group alone.
#
# *Ranges.* Balance need not depend on how many images a group has. With $e_g(r)$ the mean relative
# squared error that a range $r$ leaves in group $g$, plain ranges minimise $\sum_g n_g e_g(r)$;
# here they minimise $\sum_g e_g(r)$, or $\max_g e_g(r)$.
#
# *Preservation.* A budget of bytes goes to layers or channels whose quantization hurts the worst
# group most: layers by ablation, channels by gradient times perturbation, $\sum_{w \in c}
# \frac{\partial L_g}{\partial w} (\hat w - w)$. The controls spend the same budget by everybody's
# loss, and at random.
#
# *Mixed precision.* Bits per layer within equal bytes {cite}`woergaard2026fairquant`. With
# $S_g(x) = \sum_l s_{l g}(x_l)$ the noise that an allocation $x$ leaves in group $g$, it minimises
# $\sum_g w_g S_g$, $\max_g S_g$, or the mean of the worst half (CVaR {cite}`rockafellar2000cvar`),
# exactly, as an integer programme.
#
# *Accuracy control.* Layers go back to float until validation accuracy has dropped by no more than
# allowed: everybody's, as toolkits do it, or the worst group's.
#
# *Fine-tuning.* Quantization-aware training with a constraint: a penalty on unequal rates of
# positive predictions, or on unequal error rates {cite}`buyl2024fairret`; the worst group's loss
# weighted up {cite}`sagawa2020dro`; or no group losing more accuracy than the average plus a
# tolerance {cite}`hashemizadeh2024balancing`. Its two controls are fine-tuned without a constraint:
# quantized (QAT), and in FP32.

# %% [markdown]
# ### In this study
#
# Change of the worst group's accuracy against plain quantization of the same model, for every
# method:

# %% tags=["wide"] mystnb={"image": {"alt": "Changes of worst-group accuracy by method and bits"}}
mitigation.changes_figure(plain, "worst_group_accuracy", scope)
# %% tags=["wide"] mystnb={"image": {"alt": "Changes of the parity gap by method and bits"}}
mitigation.changes_figure(plain, rows.PARITY, scope)
# %% tags=["remove-cell"]
mitigation.glue_methods(plain, scope, "here", replicates)

# %% [markdown]
# Of {glue:text}`here_demographic_parity_compared:.0f` comparisons, the demographic parity gap is
# shown to be narrower in {glue:text}`here_demographic_parity_better:.0f` and wider in
# {glue:text}`here_demographic_parity_worse:.0f`; the equalized odds gap narrower in
# {glue:text}`here_equalized_odds_better:.0f` and wider in
# {glue:text}`here_equalized_odds_worse:.0f`; the worst group's accuracy higher in
# {glue:text}`here_worst_group_accuracy_better:.0f` and lower in
# {glue:text}`here_worst_group_accuracy_worse:.0f`. *Shown* means that interval, noise floor and a
# p-value corrected for all comparisons of that statistic agree.
#
# Change against plain quantization in points, with its interval and (its noise floor); what the
# method costs in seconds; and its size over the plain one's:

# %%
mitigation.changes_table(plain, scope)

# %% [markdown]
# ### Over several training seeds
#
# One training seed says what happened to one network. Recorded on rendered people with
# `params/mitigation.yaml`: {glue:text}`recorded_seeds:.0f` training seeds each of
# {glue:text}`recorded_models:.0f` architectures, {glue:text}`recorded_test:,.0f` test images. Seeds
# are resampled with the images.

# %% tags=["wide"] mystnb={"image": {"alt": "Recorded changes of worst-group accuracy by method"}}
study = recorded.read("mitigation")
found = recorded.read_part("mitigation", "methods")
everywhere = found["scope"].iloc[0]
drawn = study.about["params"]["analysis"]["replicates"]
mitigation.glue_methods(found, everywhere, "recorded", drawn)
glue("recorded_test", study.about["params"]["data"]["test"])
mitigation.changes_figure(found, "worst_group_accuracy", everywhere)
# %% tags=["wide"] mystnb={"image": {"alt": "Recorded changes of the parity gap by method"}}
mitigation.changes_figure(found, rows.PARITY, everywhere)
# %% tags=["wide"] mystnb={"image": {"alt": "Recorded changes of the odds gap by method"}}
mitigation.changes_figure(found, rows.ODDS, everywhere)
# %% [markdown]
# Plain quantization itself changes the demographic parity gap, from FP32, by
# {glue:text}`recorded_plain_W8A8:s` points at `W8A8` and by {glue:text}`recorded_plain_W4A4:s`
# points at `W4A4`.
#
# **Balanced calibration** {glue:text}`recorded_balanced_W8A8_says:s` at `W8A8` (mean change
# {glue:text}`recorded_balanced_W8A8:+.2f` points, noise floor
# ±{glue:text}`recorded_balanced_W8A8_floor:.1f`), and {glue:text}`recorded_balanced_W4A4_says:s` at
# `W4A4` ({glue:text}`recorded_balanced_W4A4:+.2f`, floor
# ±{glue:text}`recorded_balanced_W4A4_floor:.1f`).
#
# The demographic parity gap is shown to be narrower than plain in
# {glue:text}`recorded_demographic_parity_better:.0f` of
# {glue:text}`recorded_demographic_parity_compared:.0f` comparisons, the equalized odds gap in
# {glue:text}`recorded_equalized_odds_better:.0f`; the worst group's accuracy is shown to be higher
# in {glue:text}`recorded_worst_group_accuracy_better:.0f`, of which
# {glue:text}`recorded_worst_group_accuracy_controls:.0f` are controls (fine-tuned in FP32, without
# a constraint, or at random), and lower in {glue:text}`recorded_worst_group_accuracy_worse:.0f`:

# %% tags=["nbval-check-output"]
mitigation.shown_table(mitigation.shown_changes(found, everywhere, drawn))

# %% [markdown]
# Two things to read these by. A penalty on unequal rates of positive predictions narrows the parity
# gap whatever was there before: where base rates differ, it asks for a gap smaller than that of a
# classifier without errors, and what it closes need not be what quantization opened. And what a
# budget of bytes buys may be bought as well by everybody's loss, or at random: compare a method
# with its own controls before with plain quantization.

# %% tags=["nbval-check-output"]
mitigation.changes_table(found, everywhere)

# %% [markdown]
# What another training seed alone makes of the same statistics, in points: two further seeds are
# less than the floor apart 95 times in 100. With few seeds that is known badly, as its interval
# says.

# %% tags=["nbval-check-output"]
mitigation.seeds_table(recorded.read_part("mitigation", "seeds"))

# %% [markdown]
# ## What makes a disparity
#
# Rendered people allow an experiment that photographs do not: one property is turned, all else
# stays. In the *even* world half of the people belong to the dialled group, half of them smile,
# everybody is lit alike. Then the group's share in training, or in calibration alone, is turned
# down; or it smiles more often; or its images are darker; or its skin reflects less; or its smiles
# are harder to tell. The statistic is signed: by how much more accuracy the group loses to
# quantization than the others. Recorded with `params/dials.yaml`: {glue:text}`dial_seeds:.0f`
# training seeds of each network, {glue:text}`dial_train:,.0f` training and
# {glue:text}`dial_test:,.0f` test images in every world.

# %% tags=["wide"] mystnb={"image": {"alt": "Dialled group's recorded loss, by level of each dial"}}
turned = recorded.read_part("dials", "dials")
dials.dial_figure(turned, "behind")
# %% tags=["remove-cell"]
behind = dials.dial_verdicts(turned)
parity = dials.dial_verdicts(turned, rows.PARITY)
dials.glue_dials(behind, "recorded")
dials.glue_dials(parity, "parity")
dials.glue_dial_study(recorded.read("dials"))

# %% [markdown]
# Points above zero: the dialled group ({glue:text}`dialled:s`) loses more than the others. At the
# last level of each dial:

# %% tags=["nbval-check-output"]
dials.dial_table(behind)

# %% [markdown]
# *Shown* is a change beyond that of the even world whose interval excludes zero, that is beyond its
# noise floor, and whose p-value stays small when it is corrected for all cases of the table (Holm):
# with so many, a few intervals exclude zero by chance. That is so in
# {glue:text}`recorded_dials_shown:.0f` of {glue:text}`recorded_dials:.0f` cases:
# {glue:text}`recorded_dials_which:s`. What is not shown is not excluded: intervals reach
# {glue:text}`recorded_dials_reach_most:.1f` points at the most bits and
# {glue:text}`recorded_dials_reach_fewest:.1f` at the fewest.
#
# The same for the demographic parity gap, which also moves where a group's predictions all move one
# way and its accuracy does not:

# %% tags=["nbval-check-output"]
dials.dial_table(parity)

# %% [markdown]
# Shown in {glue:text}`parity_dials_shown:.0f` of {glue:text}`parity_dials:.0f` cases:
# {glue:text}`parity_dials_which:s`. More than {glue:text}`far:.0%` of it is taken away, beyond the
# noise floor, by: {glue:text}`parity_dials_removed:s`.

# %% [markdown]
# ### The dials in this study

# %% tags=["wide"] mystnb={"image": {"alt": "Dialled group's loss here, by level of each dial"}}
here = dials.dial_effects(chapter)
dials.dial_figure(here, "behind")
# %% tags=["remove-cell"]
dials.glue_dials(dials.dial_verdicts(here), "here")

# %% [markdown]
# Shown in {glue:text}`here_dials_shown:.0f` of {glue:text}`here_dials:.0f` cases:
# {glue:text}`here_dials_which:s`. Taken away by: {glue:text}`here_dials_removed:s`.
# `params/study.yaml` has the same dials at more levels, with more images, seeds and mitigations.
#
# ## A guarantee
#
# All of the above says what happened on average, or here. A practitioner wants to know about *this*
# quantized model. {py:class}`FairnessAwareQuantizer
# <fairq_utils.mitigation.certified.FairnessAwareQuantizer>` makes candidates, and returns one only
# if it is *certified*: on images that had no part in making it, the hypothesis that the gap grew by
# more than a limit is rejected at level $\delta$. Candidates are tested in a fixed sequence
# {cite}`angelopoulos2021learn`, the safest-looking first, each at its part of $\delta$, which it
# passes on if it is certified {cite}`wiens2003fixed`. If none passes, it raises `NotCertified`, and
# says how many images would have been needed. The evidence is that of a bet
# {cite}`waudbysmith2024estimating`, valid at any number of images. It has its price: where
# {glue:text}`certificate_flips:.0f` % of the predictions flip and the gap stays as it was, a
# certificate comes in {glue:text}`certificate_chance:.0f` % of draws from
# {glue:text}`certificate_needed:,.0f` held-out images of four even groups on,
# {glue:text}`certificate_price:.1f` times as many as a z-test asks for, which is an approximation.
#
# How often is a certificate wrong? Simulated from known truths, {glue:text}`certificate_draws:.0f`
# draws a point, limit {glue:text}`certificate_limit:.0f` point, $\delta$ =
# {glue:text}`certificate_delta:.0f` %. Above: how often a candidate that is safe is certified.
# Below: how often one that is not.

# %% mystnb={"image": {"alt": "Shares certified rightly and wrongly, over held-out images"}}
simulated = recorded.read_benchmark("certificate")
certificates.glue_certificates(simulated)
cells = certificates.read_cells(simulated)
certificates.certificate_figure(cells, simulated["limit"], simulated["delta"])
# %% [markdown]
# The largest share of false certificates in any cell is {glue:text}`certificate_wrong_most:.1f` %,
# also where {glue:text}`certificate_candidates:.0f` candidates were tested in sequence, some of
# them unsafe.

# %% tags=["nbval-check-output"]
certificates.certificate_table(cells)

# %% [markdown]
# ## Summary
#
# What is said over several seeds is recorded, and about rendered people.
#
# - Balanced calibration {glue:text}`recorded_balanced_W8A8_says:s` at `W8A8` and
#   {glue:text}`recorded_balanced_W4A4_says:s` at `W4A4`, over {glue:text}`recorded_seeds:.0f`
#   training seeds.
# - Of the dials, over {glue:text}`dial_seeds:.0f` training seeds, what quantization does to the
#   group's accuracy is shown to differ from the even world in: {glue:text}`recorded_dials_which:s`;
#   what it does to the parity gap, in: {glue:text}`parity_dials_which:s`, taken away by:
#   {glue:text}`parity_dials_removed:s`.
# - Against plain quantization the worst group's accuracy is shown to rise in
#   {glue:text}`recorded_worst_group_accuracy_better:.0f` of
#   {glue:text}`recorded_worst_group_accuracy_compared:.0f` comparisons,
#   {glue:text}`recorded_worst_group_accuracy_controls:.0f` of them controls; the demographic parity
#   gap is shown to shrink in {glue:text}`recorded_demographic_parity_better:.0f`.
# - A relative reduction ("half the change of the gap") has no meaning where that change is inside
#   the noise floor; the paired difference does.
# - A bound on the change of the gap of one model can be had, and its price is held-out images:
#   where {glue:text}`certificate_flips:.0f` % of the predictions flip,
#   {glue:text}`certificate_needed:,.0f` of them for a limit of {glue:text}`certificate_limit:.0f`
#   point, mostly.
# - *What would change our mind*: a difference whose interval excludes zero across training seeds
#   and calibration draws, in one direction.
