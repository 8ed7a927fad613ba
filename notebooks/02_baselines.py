# %% [markdown]
# # Baselines
#
# **Question.** How accurate, and how even-handed, are the five networks before anything is
# quantized?
#
# Every change that later chapters report is a change from these models, on the same test
# images. ResNet-50 {cite}`he2016deep`, MobileNetV2 {cite}`sandler2018mobilenetv2`,
# EfficientNet-B0 {cite}`tan2019efficientnet`, ViT-Small {cite}`dosovitskiy2021image` and
# SqueezeNet 1.1 {cite}`iandola2016squeezenet` are trained by one loop; they differ by their
# entry in the params file.

# %% tags=["parameters", "remove-cell"]
params_file = "../params/smoke.yaml"

# %% tags=["remove-cell"]
from fairq_utils import chapters, figures, tables

chapter = chapters.open_chapter(params_file)
glue = chapter.glue
effects = chapter.effects()
fp32 = effects[effects.method == "fp32"]

# %% [markdown]
# ## Accuracy
#
# Each point is a model's accuracy on the test images with its bootstrap interval. The dashed
# line is the accuracy of somebody who knows the true strength of every smile.

# %%
figures.accuracy_bars(effects, chapter.population.bayes_accuracy)
# %% [markdown]
# The best model is {glue:text}`02_baselines.ipynb::best:s` with
# {glue:text}`02_baselines.ipynb::best_accuracy:.1%`; the weakest is
# {glue:text}`02_baselines.ipynb::worst:s` with
# {glue:text}`02_baselines.ipynb::worst_accuracy:.1%`.

# %% tags=["remove-cell"]
accuracy = fp32[fp32.statistic == "accuracy"].drop_duplicates("architecture")
accuracy = (
    tables.named(accuracy.set_index("architecture", drop=False)).set_index("architecture").compared
)
glue("best", accuracy.idxmax())
glue("best_accuracy", float(accuracy.max()))
glue("worst", accuracy.idxmin())
glue("worst_accuracy", float(accuracy.min()))

# %% [markdown]
# ## By group
#
# One cell per architecture and group. A group of few images has a wide interval: the numbers of
# images stand in the table below the figure.

# %%
groups = chapter.group_effects()
base_groups = groups[groups.method == "fp32"]
figures.group_heatmap(base_groups)
# %%
chapters.group_table(base_groups)

# %% [markdown]
# ## Gaps
#
# Gaps between the four groups of gender and age: difference in the rate of predicted smiles
# (demographic parity), the larger of the differences in true and false positive rate (equalized
# odds {cite}`hardt2016equality`), the difference in false positive rate alone (predictive
# equality), and the ratio of the lowest to the highest rate of predicted smiles (disparate
# impact; the four-fifths rule asks for at least 0.8). Points; the ratio as it is. Brackets are
# intervals.

# %%
chapters.gap_table(fp32, chapter.crossed)

# %% [markdown]
# The published study reports gaps of under two points here, and for ResNet-50 none at all. A
# classifier without errors would have a demographic parity gap of
# {glue:text}`02_baselines.ipynb::perfect_gap:.1f` points between these groups, because they
# smile at different rates. A gap near zero is therefore not a mark of quality but of errors
# that happen to cancel.

# %% tags=["remove-cell"]
glue("perfect_gap", 100 * chapter.perfect_gap())

# %% [markdown]
# ## Sizes
#
# The size that the published study prints is that of the parameters and buffers in float32. We
# count the same, for two classes at 224 pixels.

# %% tags=["nbval-check-output"]
chapters.size_table()

# %% [markdown]
# ResNet-50 agrees to the last digit in MiB ($2^{20}$ bytes), buffers included. MobileNetV2's
# published figure is our parameters alone in units of $10^6$ bytes: the published column mixes
# two units. For the other three no such reading fits exactly, and the study does not say how it
# counted.
#
# ## Summary
#
# - All architectures are well above chance and below the attainable accuracy; the difference
#   between them is the room that larger models make of the same pictures.
# - Gaps in demographic parity are dominated by the groups' base rates; equalized odds looks at
#   errors alone.
# - *What would change our mind*: other training seeds. With one seed the differences between
#   architectures are not separated from the luck of a training run.
