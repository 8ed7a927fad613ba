# %% [markdown]
# # Baselines
#
# **Question.** How accurate, and how even-handed, are the networks before anything is quantized?
#
# Every change that later chapters report is a change from these models, on the same test images.
# ResNet-50 {cite}`he2016deep`, MobileNetV2 {cite}`sandler2018mobilenetv2`, EfficientNet-B0
# {cite}`tan2019efficientnet`, ViT-Small {cite}`dosovitskiy2021image` and SqueezeNet 1.1
# {cite}`iandola2016squeezenet` are trained by one loop; they differ by their entry in the params
# file.

# %% tags=["parameters", "remove-cell"]
params_file = "../params/smoke.yaml"
overrides = {}

# %% tags=["remove-cell"]
from fairq_utils.report import fp32_models
from fairq_utils.report.chapter import open_chapter
from fairq_utils.report.effects import equal_errors

chapter = open_chapter(params_file, overrides)
fp32 = chapter.effects[chapter.effects.method == "fp32"]
groups = chapter.group_effects[chapter.group_effects.method == "fp32"]

# %% [markdown]
# ## Accuracy
#
# Each point is a model's accuracy on the test images with its bootstrap interval. Where people are
# rendered, the dashed line is the accuracy of somebody who knows the true strength of every smile.

# %% mystnb={"image": {"alt": "Points of test accuracy by architecture, each with its interval"}}
fp32_models.accuracy_figure(fp32, fp32_models.ceiling(chapter))
# %% [markdown]
# The best model is {glue:text}`best:s` with {glue:text}`best_accuracy:.1%`; the weakest is
# {glue:text}`worst:s` with {glue:text}`worst_accuracy:.1%`. The interval of
# {glue:text}`overlapping:.0f` of {glue:text}`models:.0f` models (the best included) reaches that of
# the best.

# %% tags=["remove-cell"]
fp32_models.glue_baselines(chapter)

# %% [markdown]
# ## By group
#
# One cell per architecture and group. A group of few images has a wide interval: the numbers of
# images and the intervals stand in the table below the figure.

# %% mystnb={"image": {"alt": "Heat map of accuracy: architectures down, groups across"}}
fp32_models.groups_figure(groups)
# %%
fp32_models.groups_table(groups)

# %% [markdown]
# ## Gaps
#
# Gaps between the groups, all attributes crossed: difference in the rate of positive predictions
# (demographic parity), the larger of the differences in true and false positive rate (equalized
# odds {cite}`hardt2016equality`), the difference in false positive rate alone (predictive
# equality), and the ratio of the lowest to the highest rate of positive predictions (disparate
# impact; the four-fifths rule asks for at least 0.8). Points; the ratio as it is. Brackets are
# intervals. The last row is the floor: what a model of this accuracy would show whose errors do not
# depend on the group at all (median, and the range of nine draws in ten). Its gaps in error rates
# are chance alone, its gap in positive predictions is the base rates and chance.

# %%
alike = equal_errors(chapter.runs, chapter.params)
fp32_models.gaps_table(fp32, chapter.crossed, alike)

# %% [markdown]
# The published study reports gaps of under two points, and for ResNet-50 none at all. Ours run from
# {glue:text}`parity_low:.1f` to {glue:text}`parity_high:.1f` points of demographic parity. A
# classifier without errors would have a demographic parity gap of {glue:text}`perfect_gap:.1f`
# points between these groups, because their base rates differ. A gap near zero is therefore not a
# mark of quality but of errors that happen to cancel.

# %% [markdown]
# ## Sizes
#
# The size that the published study prints is that of the parameters and buffers in float32. We
# count the same, for two classes at 224 pixels.

# %% tags=["nbval-check-output"]
fp32_models.sizes_table()

# %% [markdown]
# The last column names the first way of counting that reproduces the published figure to its last
# digit: the number of outputs (two classes, one logit, the forty attributes of CelebA, ImageNet's
# thousand), with or without buffers, in MiB ($2^{20}$ bytes) or units of $10^6$ bytes. Where
# architectures differ in that column, the published one mixes ways of counting; where it says none,
# the study does not tell how it counted.
#
# ## Summary
#
# - Accuracy runs from {glue:text}`worst_accuracy:.1%` to {glue:text}`best_accuracy:.1%`;
#   {glue:text}`ceiling:s`.
# - The gap in demographic parity of a perfect classifier, {glue:text}`perfect_gap:.1f` points,
#   comes from base rates; equalized odds looks at errors alone and runs from
#   {glue:text}`odds_low:.1f` to {glue:text}`odds_high:.1f` points here.
# - *What would change our mind*: more training seeds than the {glue:text}`seeds:.0f` of this study.
#   The luck of a training run moves accuracy and gaps as well.
