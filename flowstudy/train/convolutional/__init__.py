"""The paper's convolutional nets and how they learn."""
