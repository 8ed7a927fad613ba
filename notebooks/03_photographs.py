# %% [markdown]
# # Your own photographs
#
# **Question.** How does the same study run on photographs, and what is refused?
#
# Rendered people are where this book starts, because anyone can have them. Three collections of
# photographs are read as they are distributed, and decoded once into a file that is memory-mapped:
# what training holds in memory does not grow with their number.

# %% tags=["parameters", "remove-cell"]
params_file = "../params/smoke.yaml"
overrides = {}

# %% tags=["remove-cell"]
from fairq_utils.report import photographs, population
from fairq_utils.report.chapter import glue, open_chapter
from fairq_utils.study import recorded

chapter = open_chapter(params_file, overrides)

# %% [markdown]
# ## Step by step
#
# 1. **Read the terms, then fetch the files.** `fairq data get celeba --root data/celeba` says who
#    owns the images and what they may be used for; with `--accept-licence` it downloads what the
#    licence lets it. The folder may as well be filled by hand.

# %% tags=["nbval-check-output"]
photographs.collections_table()

# %% [markdown]
#    Images of your own need no code: put a table `labels.csv` beside them, whose first column names
#    the files and whose others are a target, groups and perhaps `split`, and write
#    `data: {name: folder, root: faces, target: smiling, groups: {sex: gender, age: age}}`.
#
# 2. **Vouch for the folder.** `fairq data check celeba --root data/celeba` counts subjects by group
#    beside the published counts, and lists what is damaged, missing, unlabelled, of another size,
#    or there twice, within a split or across. It ends in 0 or 1.
# 3. **Ask who is in it.** `fairq data describe celeba --root data/celeba` prints groups, base rates
#    and the gap that a perfect classifier would have.
# 4. **Run the study.** `make book PROFILE=celeba`, or `utkface`, or `fairface`. Without a GPU begin
#    with a part: a copy of the params file with fewer and smaller images (`data.images`,
#    `data.size: 64`), one architecture and one seed under `training`, and few methods; `fairq plan`
#    lists what there is to compute.
#
# Splits are the collection's own. What it does not hold out is carved by the hash of a file's name:
# adding an image moves no other. An image or label that cannot be used is never dropped in silence;
# more than `data.max_bad` of them stop the study before anything is computed.

# %% [markdown]
# ## What is refused
#
# Each row is a folder with one fault, and what is said about it:

# %%
photographs.refusals_table(recorded.read_rows("refusals"))

# %% [markdown]
# ## Throughput
#
# A GPU must not wait for images to be decoded. {glue:text}`decoded:,.0f` images a second are
# decoded to {glue:text}`size:.0f` pixels by one core, once; {glue:text}`cached:,.0f` a second are
# read back in shuffled batches, {glue:text}`ratio:,.0f` times as many. Memory that is not the
# file's own grows by {glue:text}`memory_small:.1f` MB over {glue:text}`images_small:,.0f` images
# and by {glue:text}`memory_large:.1f` MB over {glue:text}`images_large:,.0f`.

# %% tags=["remove-cell"]
photographs.glue_throughput(recorded.read_benchmark("data"))

# %% [markdown]
# ## The subjects of this study

# %% tags=["wide"] mystnb={"image": {"alt": "Rows of faces, each titled with groups and label"}}
population.faces_figure(chapter.faces().subset("test"), rows=2)
# %%
photographs.groups_table(chapter)
# %% tags=["remove-cell"]
glue("subjects", photographs.subjects(chapter))

# %% [markdown]
# {glue:text}`subjects:s`
#
# ## Summary
#
# - Photographs take the place of rendered people by the `data` section of a params file; every
#   chapter but those about rendered people is then about them.
# - What is wrong with a folder is said with file and line, and counted.
# - *What would change our mind*: a collection that these readers take for what it is not. The
#   published counts are what `fairq data check` holds against that.
