"""Published collections of photographs: CelebA, UTKFace, FairFace."""
