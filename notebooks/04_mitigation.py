# %% [markdown]
# # Mitigation
#
# **Question.** Does it help to calibrate on a demographically balanced set?
#
# A static quantizer sees a few hundred images before it is deployed, and sets its ranges by
# them. If old women are {glue:text}`04_mitigation.ipynb::rare:.1%` of those images, ranges are
# set by everybody else. The published study claims that sampling the calibration set evenly
# over gender and age halves the harm for free. We repeat the experiment: same checkpoint, same
# number of images, same ranges, only the draw differs.

# %% tags=["parameters", "remove-cell"]
params_file = "../params/smoke.yaml"
overrides = {}

# %% tags=["remove-cell"]
from fairq_utils import chapters, figures, planning, tables

chapter = chapters.open_chapter(params_file, overrides)
glue = chapter.glue
mitigated = chapter.mitigation_effects
glue("rare", chapter.share(gender="female", age="old"))

# %% [markdown]
# ## Who is in the calibration set
#
# Images per group in one random and one balanced draw of equal size.

# %% tags=["nbval-check-output"]
tables.shown(planning.calibration_draws(chapter.params))

# %% [markdown]
# ## The effect on demographic parity
#
# Left: the change of the gap from FP32 after random (open) and balanced (filled) calibration.
# Right: balanced minus random, paired on the same images, with its interval and its noise floor;
# left of zero is better.

# %%
figures.mitigation(mitigated, "demographic_parity_difference", chapter.crossed)
# %% [markdown]
# ## The effect on equalized odds

# %%
figures.mitigation(mitigated, "equalized_odds_difference", chapter.crossed)
# %% tags=["remove-cell"]
chapters.glue_mitigation(chapter)

# %% [markdown]
# Over {glue:text}`04_mitigation.ipynb::pairs:.0f` pairs, balanced calibration changes the
# demographic parity gap by {glue:text}`04_mitigation.ipynb::mean_change:+.2f` points on
# average. The interval excludes zero in favour of balance in
# {glue:text}`04_mitigation.ipynb::better:.0f` pairs and against it in
# {glue:text}`04_mitigation.ipynb::worse:.0f`; beyond its noise floor, in either direction, lie
# {glue:text}`04_mitigation.ipynb::beyond_floor:.0f`. Accuracy changes by
# {glue:text}`04_mitigation.ipynb::accuracy_change:+.2f` points on average.
#
# To halve a harm there must first be one: random calibration widens the gap, beyond its noise
# floor and with an interval above zero, in {glue:text}`04_mitigation.ipynb::harmed:.0f` of
# {glue:text}`04_mitigation.ipynb::static:.0f` static configurations.
#
# The noise floor is about test images, not about the draw. Each sampler was drawn
# {glue:text}`04_mitigation.ipynb::draws:.0f` time(s) per model here. Under min-max ranges a single
# odd picture in the draw sets a layer's range for everybody, so that two random draws can differ as
# much as a random and a balanced one: where all of a model's min-max rows move and its percentile
# rows do not, suspect the draw before the balance.
#
# ## All numbers

# %%
tables.mitigation(mitigated, chapter.crossed)

# %% [markdown]
# ## Summary
#
# - Balanced calibration narrows the demographic parity gap in
#   {glue:text}`04_mitigation.ipynb::better:.0f` and widens it in
#   {glue:text}`04_mitigation.ipynb::worse:.0f` of {glue:text}`04_mitigation.ipynb::pairs:.0f`
#   pairs; on average it moves it by {glue:text}`04_mitigation.ipynb::mean_change:+.2f` points.
# - A relative reduction ("half the harm") has no meaning where the harm is inside the noise
#   floor; the paired difference does.
# - *What would change our mind*: a difference whose interval excludes zero across training
#   seeds and calibration draws, in one direction.
