"""Adaptation: any timm CNN made dynamic in minutes, from photographs without labels.

The largest resolution stays the plain backbone to the last bit, and is the teacher of the smaller ones. What is tried
on these is kept only if photographs held out for it show a gain.
"""
