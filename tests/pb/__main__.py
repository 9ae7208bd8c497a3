from tests.pb import main

main()
