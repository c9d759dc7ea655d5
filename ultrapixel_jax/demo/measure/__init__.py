"""Whether drawn pictures are as their captions say."""
