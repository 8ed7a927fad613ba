# %% [markdown]
# # The population
#
# **Question.** Who is in the population, and can demographics be recognised in the images?
#
# Fairness can only be measured on people whose groups are known, and only be lost where group
# membership leaves a trace. Photographs come with labels that somebody guessed; here we go the
# other way round. We first decide who a person is, then render the portrait. A parametric human
# model, Anny {cite}`bregier2026anny`, turns phenotype, head shape and facial actions into a mesh;
# the package projects it, shades it and adds a camera's noise. Nothing has to be downloaded, every
# label is true by construction, and representation, base rates and difficulty become dials.
#
# What it cannot do is stand in for photographs: see {ref}`what rendered people can tell <limits>`.
# {glue:text}`subjects:s`

# %% tags=["parameters", "remove-cell"]
params_file = "../params/smoke.yaml"
overrides = {}

# %% tags=["remove-cell"]
from fairq_utils.report import photographs, population
from fairq_utils.report.chapter import glue, open_chapter

study = open_chapter(params_file, overrides)
chapter = study.of_rendered_people()
test = chapter.faces().subset("test")
glue("subjects", photographs.rendered_subjects(study))
population.glue_population(study, chapter)

# %% [markdown]
# ## Forty people
#
# The first people of the test split. Hair, brows, eyes, skin reflectance within each ancestry,
# pose, light and expression vary from face to face, and so does the strength of the smile.

# %% mystnb={"image": {"alt": "Rows of faces, each titled with gender, age, ancestry and label"}}
population.faces_figure(test, rows=4, columns=10)
# %% [markdown]
# ## What counts as smiling
#
# The target is *Smiling*, as in the published study. A person's smile has a latent strength, drawn
# from a normal distribution whose mean depends on the label. The two distributions overlap: some
# people labelled as smiling hardly smile, and some labelled otherwise seem to. Nobody can do better
# than the overlap allows, which at difficulty {glue:text}`difficulty:.1f` is
# {glue:text}`bayes:.1%`. Strength 0.5 is the boundary; faces near it are ambiguous, as in life.

# %% mystnb={"image": {"alt": "A row of faces by rising strength of smile, each titled with it"}}
population.smile_figure(test)
# %% [markdown]
# ## The make-up is CelebA's
#
# Gender, age and Smiling follow the joint counts of all {glue:text}`celeba:,.0f` images of CelebA
# {cite}`liu2015deep` unless the params file says otherwise; ancestry is drawn independently of the
# three. Two things follow before any network is trained. Old women are rare:
# {glue:text}`old_women:.1%` of the people. And women are labelled smiling more often than men,
# so that a *perfect* classifier has a demographic parity gap of {glue:text}`perfect_gap:.1f` points
# by gender. A study that reports a gap near zero from a classifier that is over 90 % accurate on
# such groups has reported something else.
#
# {glue:text}`test_design:s`

# %% mystnb={"image": {"alt": "Bars of images and points of share smiling, by gender and age"}}
population.composition_figure(test)
# %% [markdown]
# ## Can the demographics be recognised?
#
# A small convolutional network, four blocks and three heads, is trained to tell all three
# attributes from the training images, and evaluated on the test images. It recovers gender in
# {glue:text}`gender:.1%`, the age group in {glue:text}`age:.1%` and ancestry in
# {glue:text}`race:.1%` of them: the signal is there for a classifier to lean on.

# %% mystnb={"image": {"alt": "Heat maps of true against predicted group, one for each attribute"}}
confusion = population.recovery(chapter)
population.glue_recovery(confusion)
population.recovery_figure(confusion)

# %% [markdown]
# (limits)=
# ## What rendered people can and cannot tell
#
# - **The categories are render settings.** "Female", "old" or "asian" name positions of the sliders
#   of a human model and the reflectances that we gave them. They are not identities, and nothing
#   here says what a real person of any group looks like.
# - **The mechanism carries over, the magnitudes need not.** How quantization ranges, rare groups
#   and decision margins interact is a property of networks and numbers. How many points a group of
#   real people loses is a property of photographs: their make-up, cameras, labels and label errors.
# - **Nothing is missing by accident.** Glasses, hats, make-up, scars, hands and other people do not
#   occur. A network that is fair here has not been tested on them.
# - **Not to be used against anyone.** A small gap on this population does not clear a system for
#   use on people, and a large one does not convict a group. Smile detection is a stand-in for any
#   binary decision.
#
# ## Summary
#
# - Each face is a pure function of the population's seed and its index: any subset on any machine
#   shows the same people.
# - Gender, age and ancestry can be recovered from the images by a small network.
# - Base rates differ between groups, as in CelebA, so gaps of a perfect classifier are not zero.
# - *What would change our mind*: the same analysis on photographs with a different outcome; the
#   readers of the package are made for that comparison.
