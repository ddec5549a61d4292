"""What metrics of sets share: one vector per image, by the judge or by Inception."""
